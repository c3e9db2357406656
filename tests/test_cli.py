"""The command line: bad input is one line with its cure, the right exit code, nothing left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from typer.testing import CliRunner

from clp_edge.cli import app
from tests.conftest import save_tiny_llama, write_words

pytestmark = pytest.mark.llama


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    save_tiny_llama(folder / "tiny", blocks=8)
    write_words(folder / "words.txt", seed=0)
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("Hardly a word.")
    whole = (folder / "tiny" / "model.safetensors").read_bytes()
    cut = folder / "cut"
    cut.mkdir()
    for file in (folder / "tiny").iterdir():
        data = whole[: len(whole) // 2] if file.name == "model.safetensors" else file.read_bytes()
        (cut / file.name).write_bytes(data)
    writer = GGUFWriter(folder / "other.gguf", "bogus")
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def run(place: Path, *arguments: str) -> tuple[int, str, str]:
    before = os.getcwd()
    os.chdir(place)
    try:
        result = CliRunner().invoke(app, list(arguments))
    finally:
        os.chdir(before)
    return result.exit_code, result.stdout, result.stderr


BAD = {
    "unknown model": (["no-such/model"], 1, "not in the local cache"),
    "missing folder": (["./nowhere"], 1, "nowhere"),
    "unknown target": (["tiny", "--target", "gguf-q4_k_x"], 2, "did you mean gguf-q4_k"),
    "ratio of 1": (["tiny", "--prune", "1.0"], 2, "between 0 and 1"),
    "ratio below 0": (["tiny", "--prune", "-0.1"], 2, "between 0 and 1"),
    "more blocks than there are": (["tiny", "--drop-blocks", "9"], 2, "at least 2 blocks"),
    "too few would stay": (["tiny", "--blocks", "0-6"], 2, "at least 2 blocks must stay"),
    "a block that is not there": (["tiny", "--blocks", "6-8"], 2, "blocks 0-7"),
    "no segment": (["tiny", "--blocks", "5-3"], 2, "5-3"),
    "no blocks": (["tiny", "--blocks", "x"], 2, "FIRST-LAST"),
    "two ways to say how much": (["tiny", "--prune", "0.2", "--blocks", "1-2"], 2, "exclude"),
    "unknown search": (["tiny", "--search", "gat"], 2, "did you mean gate"),
    "unknown healing": (["tiny", "--heal", "magic"], 2, "none, refit, graft, local, endpoints"),
    "too few bytes": (["tiny", "--max-bytes", "1KB"], 2, "the largest file is still"),
    "a provider for no ONNX": (["tiny", "--ep", "cuda"], 2, "--ep cuda says nothing to gguf"),
    "questions that are none": (["tiny", "--tasks", "short.txt"], 2, "short.txt"),
    "retention of nothing": (["tiny", "--min-retention", "0.9"], 2, "--tasks"),
    "no size": (["tiny", "--max-bytes", "much"], 2, "as a size"),
    "empty calibration": (["tiny", "--calibration", "empty.txt"], 1, "empty.txt"),
    "short calibration": (["tiny", "--calibration", "short.txt"], 1, "token"),
    "no calibration": (["tiny", "--calibration", "nowhere.txt"], 1, "nowhere.txt"),
    "no evaluation text": (["tiny", "--eval-text", "nowhere.txt"], 1, "nowhere.txt"),
    "eval tokens": (["tiny", "--eval-tokens", "many"], 2, "--eval-tokens"),
    "truncated weights": (["cut"], 1, "model.safetensors"),
    "a GGUF of another architecture": (["other.gguf"], 1, "bogus"),
    "threads": (["tiny", "--threads", "0"], 2, "--threads"),
    "device": (["tiny", "--device", "cudda"], 2, "did you mean cuda"),
    "an unknown flag": (["tiny", "--prunee", "0.2"], 2, "--prunee"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_with_its_cure(place: Path, name: str) -> None:
    arguments, code, says = BAD[name]
    before = sorted(place.rglob("*"))
    exit_code, out, err = run(place, "compress", *arguments, "--out", "bad", "--quiet")
    assert exit_code == code, err
    assert says in err
    assert "Traceback" not in err
    assert out == ""
    if name != "an unknown flag":
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
    left = [p for p in sorted(place.rglob("*")) if p not in before and p.is_file()]
    assert not [p for p in left if p.suffix in (".gguf", ".safetensors", ".md")], left


def test_all_problems_come_in_one_list(place: Path) -> None:
    code, _, err = run(
        place, "compress", "tiny", "--target", "gguf-q9", "--calibration", "nowhere.txt"
    )
    assert code == 2
    assert "2 problems" in err
    assert "gguf-q9" in err
    assert "nowhere.txt" in err


def test_no_disk_space_is_found_before_any_work(place: Path, monkeypatch) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    code, _, err = run(place, "compress", "tiny", "--out", "full")
    assert code == 1
    assert "GiB are free" in err
    assert not (place / "full").exists()


def test_a_missing_extra_names_its_line(place: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "clp_edge.runtimes.llama_cpp_available",
        lambda: (False, "it is not installed: pip install 'clp-edge[gguf]'"),
    )
    code, _, err = run(place, "compress", "tiny", "--out", "none")
    assert code == 1
    assert "pip install 'clp-edge[gguf]'" in err


def test_a_foreign_vocabulary_is_refused(place: Path, tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "foreign", blocks=4)
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = 100
    (folder / "config.json").write_text(json.dumps(config))
    code, _, err = run(place, "compress", str(folder), "--dry-run")
    assert code == 1
    assert "vocabulary of 100" in err


def test_a_dry_run_prints_the_plan_and_writes_nothing(place: Path) -> None:
    before = sorted(place.rglob("*"))
    code, out, err = run(place, "compress", "tiny", "--target", "gguf-q4", "--dry-run")
    assert code == 0, err
    assert "8, of which 2 go" in out
    assert "gguf-q4_k_m" in out
    assert sorted(place.rglob("*")) == before
    code, out, _ = run(place, "compress", "tiny", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["targets"][0]["target"] == "gguf-q4_k_m"


def test_inspect_shows_the_anatomy(place: Path) -> None:
    code, out, err = run(place, "inspect", "tiny", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["facts"]["blocks"] == "8"
    assert found["facts"]["architecture"] == "llama"
    assert {row["target"] for row in found["targets"]} >= {"gguf-f16", "gguf-q4_k_m"}
    code, out, _ = run(place, "inspect", "tiny", "--target", "gguf-q8_0")
    assert code == 0
    assert "gguf-q8_0" in out


def test_doctor_and_targets_answer(place: Path) -> None:
    code, out, _ = run(place, "doctor", "--json")
    assert code == 0
    assert json.loads(out)["ready"] is True
    code, out, _ = run(place, "targets")
    assert code == 0
    assert "gguf-q4_k_m" in out


def test_help_teaches() -> None:
    result = CliRunner().invoke(app, ["compress", "--help"])
    assert result.exit_code == 0
    for flag in ("--target", "--prune", "--calibration", "--dry-run", "--preset", "--heal"):
        assert flag in result.stdout


@pytest.mark.parametrize("preset", ["quick", "balanced", "best"])
def test_every_field_of_a_preset_reaches_the_run(preset: str, monkeypatch) -> None:
    """`quick` once had the bench budget of `balanced`."""
    import dataclasses

    import clp_edge.pipeline
    from clp_edge.config import PRESETS

    asked = []

    def keep(config):
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(clp_edge.pipeline, "preflight", keep)
    CliRunner().invoke(app, ["compress", "--preset", preset])
    CliRunner().invoke(app, ["compress", "--preset", preset, "--calibration", "text.txt"])
    config, given = asked
    reached = {
        "own_sequences": config.calibration.sequences,
        "given_sequences": given.calibration.sequences,
        "search_tokens": config.search.tokens,
        "refit_tokens": config.search.refit_tokens,
        "tuning_steps": config.heal.steps,
        "tuning_rate": config.heal.rate,
        "evaluation_sequences": config.evaluation.sequences,
        "bench_rounds": config.bench.rounds,
        "bench_budget_s": config.bench.budget_s,
        "prompts": config.evaluation.prompts,
    }
    assert reached == dataclasses.asdict(PRESETS[preset])
