"""search as a user has it: both criteria, the plot, the methods side by side, and bad input."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from clp_edge.cli import app
from clp_edge.data import Calibration
from clp_edge.pipeline.stages.search import parts
from tests.conftest import save_tiny_llama, write_words

TEXT = ("--preset", "quick", "--calibration", "words.txt", "--drop-blocks", "2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searching")
    save_tiny_llama(folder / "tiny", blocks=8)
    write_words(folder / "words.txt", seed=0, paragraphs=500)
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def call(*arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a search."""
    done = CliRunner().invoke(app, ["search", "tiny", *TEXT, *arguments])
    assert "Traceback" not in done.output
    return done.exit_code, done.stdout, done.stderr


def test_the_two_criteria_are_said_and_drawn(place: Path) -> None:
    code, out, err = call("--method", "exact", "--out", "healed", "--plot", "curve.svg", "--json")
    assert code == 0, err
    found = json.loads(out)["search"]
    assert found["criterion"] == "healed"
    assert found["refit_tokens"] == 8 * 256
    refitted = [w for w in found["windows"] if w["kl_healed"] is not None]
    assert len(found["windows"]) == 5
    assert found["kl_healed"] == min(w["kl_healed"] for w in refitted)
    drawn = ElementTree.parse(place / "curve.svg").getroot()
    said = " ".join("".join(node.itertext()) for node in drawn.iter() if node.tag.endswith("text"))
    for name in ("KL of every window", "KL of the cut", "KL after the refit", "chosen: blocks"):
        assert name in said
    code, out, _ = call("--method", "exact", "--criterion", "raw", "--out", "raw", "--json")
    assert code == 0
    raw = json.loads(out)["search"]
    assert raw["criterion"] == "raw"
    assert raw["kl_healed"] is None
    assert raw["kl_raw"] == min(w["kl_raw"] for w in raw["windows"])
    assert raw["segment"] == found["raw_choice"]
    code, out, err = call("--method", "exact", "--out", "healed")  # the same again, as a person
    assert code == 0, err
    assert "KL after the refit" in out
    assert f"blocks {found['segment']['first']}-{found['segment']['last']} of 8 can go" in out


def test_compare_runs_every_method_with_every_seed(place: Path) -> None:
    code, out, err = call("--compare", "--seeds", "0,1", "--out", "compared", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document == json.loads((place / "compared" / "compare.json").read_text())
    found = document["comparison"]
    assert [(row["method"], row["seed"]) for row in found["rows"]] == [
        (method, seed) for method in ("exact", "halving", "gate") for seed in (0, 1)
    ]
    curve = {w["first"]: w["kl_raw"] for w in found["windows"]}
    assert len(curve) == 5
    for row in found["rows"]:
        expected = curve[row["segment"]["first"]] / min(curve.values()) - 1.0
        assert row["regret"] == pytest.approx(expected, abs=1e-6)
        if row["method"] != "gate":
            assert row["own"] is None
            assert row["own_regret"] is None
        else:
            assert row["own_regret"] >= row["regret"] - 1e-9
            assert row["judged"] <= 5
    assert found["rows"][0]["regret"] == 0.0
    assert found["criteria"]["healed"] is not None
    assert document["environment"]["torch"] == torch.__version__
    code, out, err = call("--compare", "--seeds", "0,1", "--out", "compared")
    assert code == 0, err
    for word in ("method", "exact", "halving", "gate", "passes"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--criterion", "heeled"), "did you mean healed?"),
        (("--compare", "--seeds", "a,b"), "cannot read --seeds"),
        (("--compare", "--seeds", "-1"), "cannot read --seeds"),
        (("--plot", "curve.png"), "is no .svg file"),
        (("--compare", "--plot", "curve.svg"), "--compare runs several"),
        (("--tokens", "0"), "judges nothing"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], said: str, place: Path
) -> None:
    before = sorted(place.iterdir())
    code, out, err = call(*arguments, "--out", "bad")
    assert code == 2
    assert said in err
    assert out == ""
    assert sorted(place.iterdir()) == before


def test_no_sequence_is_both_judged_and_fitted_on_and_both_are_spread() -> None:
    rows = torch.arange(40 * 4).view(40, 4)
    text = Calibration(
        fit=rows[:32], select=rows[32:36], report=rows[36:], origin="", sha256="",
        fit_texts=(), select_texts=(), report_texts=(), report_sequences=(),
    )  # fmt: skip
    ids, fit = parts(text, tokens=8 * 4, refit_tokens=16 * 4)
    assert len(ids) == 8
    assert len(fit) == 16
    assert torch.equal(ids[:4], rows[32:36])
    judged, fitted = set(ids[:, 0].tolist()), set(fit[:, 0].tolist())
    assert not judged & fitted
    assert max(fitted) - min(fitted) > 24 * 4
    few, none = parts(text, tokens=4, refit_tokens=0)
    assert few.tolist() == [rows[34].tolist()]
    assert len(none) == 0
