"""heal under torchrun: one folder, one voice, the weights of one process; other verbs refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from clp_edge.cli import app
from clp_edge.commands import processes
from clp_edge.registry import RUNGS
from tests.conftest import REPOSITORY, save_tiny_llama, write_words

# float32: under bfloat16 autocast every product rounds to three digits, in its own order
EXACT = ("--dtype", "float32", "--threads", "1")
HEAL = ("heal", "cut", "--preset", "quick", "--calibration", "words.txt", *EXACT)
TWO = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
ALONE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}

# clp-edge whose second process fails once it is told to heal
FAILS = """
import os
from clp_edge import cli
from clp_edge.errors import ClpEdgeError
if os.environ["RANK"] == "1":
    from clp_edge.heal.local import Local
    def mend(*_):
        raise ClpEdgeError("the second process has had enough", "leave it")
    Local.mend = mend
cli.main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    save_tiny_llama(folder / "tiny", blocks=8, hidden_size=64, intermediate_size=128)
    write_words(folder / "words.txt", seed=0, paragraphs=500)
    (folder / "fails.py").write_text(FAILS)
    done = run(folder, "-m", "clp_edge", "prune", "tiny", "--blocks", "3-4", "--out", "cut")
    assert done.returncode == 0, done.stderr
    return folder


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python with these words, in that folder."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env={**os.environ, **ALONE},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


def test_two_processes_write_what_one_writes(place: Path) -> None:
    one = run(place, "-m", "clp_edge", *HEAL, "--out", "one")
    assert one.returncode == 0, one.stderr
    two = run(place, *TWO, "-m", "clp_edge", *HEAL, "--out", "two")
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("2 processes heal together") == 1
    assert two.stderr.count("[3/4] Heal: done") == 1
    assert two.stdout.count("wrote ") == 1
    ours, theirs = (json.loads((place / o / "heal.json").read_text()) for o in ("one", "two"))
    assert tuple(r["name"] for r in ours["heal"]["rungs"]) == RUNGS.names()
    for before, after in zip(ours["heal"]["rungs"], theirs["heal"]["rungs"], strict=True):
        assert after["kl_after"] == pytest.approx(before["kl_after"], rel=1e-5)
        assert after["kept"] == before["kept"]
    weights = [load_file(place / o / "hf" / "model.safetensors") for o in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert float((weights[1][name] - value).norm() / value.norm()) < 1e-5, name
    # the same command again, in two processes or in one, has nothing left to do
    for again in ((*TWO, "-m", "clp_edge"), ("-m", "clp_edge")):
        done = run(place, *again, *HEAL, "--out", "two")
        assert done.returncode == 0, done.stderr
        assert "[3/4]" not in done.stderr
        assert done.stdout == two.stdout


def test_where_one_fails_it_speaks_alone_and_the_run_can_go_on(place: Path) -> None:
    failed = run(place, *TWO, "fails.py", *HEAL, "--out", "failed")
    assert failed.returncode != 0
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: the second process has had enough; leave it"]
    assert failed.stdout == ""
    done = run(place, "-m", "clp_edge", *HEAL, "--heal", "refit", "--out", "failed")
    assert done.returncode == 0, done.stderr
    assert "[1/4] Calibration text: done before, kept" in done.stderr


def test_what_is_wrong_with_the_command_is_said_once(place: Path) -> None:
    failed = run(place, *TWO, "-m", "clp_edge", "heal", "nowhere", "--out", "none")
    assert failed.returncode != 0
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "--teacher" in errors[0]
    assert not (place / "none").exists()


def test_other_verbs_are_the_work_of_one_process(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PATIENCE_S", 0.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        done = CliRunner().invoke(app, ["compress", str(place / "tiny"), "--dry-run"])
        assert done.exit_code == 2
        said.append(done.output)
    assert said[0].startswith("error: compress is the work of one process")
    assert "heal" in said[0]
    assert said[1] == ""
    monkeypatch.delenv("RANK")  # WORLD_SIZE alone is somebody else's variable
    assert CliRunner().invoke(app, ["targets"]).exit_code == 0
