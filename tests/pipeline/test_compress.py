"""compress() on a tiny Llama, through the real command line: files, resuming, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from clp_edge.models.anatomy import dissect
from clp_edge.pipeline.folder import read_state
from clp_edge.report import parse_report
from tests.conftest import save_tiny_llama, write_words

pytestmark = pytest.mark.llama

FLAGS = ("--preset", "quick", "--target", "gguf-q8_0", "--drop-blocks", "2", "--heal", "refit")


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clp_edge", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "CLP_EDGE_CACHE": str(folder / "cache"), **environment},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compress")
    save_tiny_llama(folder / "tiny", blocks=8)
    write_words(folder / "words.txt", seed=0, paragraphs=500)
    write_words(folder / "other.txt", seed=1, paragraphs=200)
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    done = run(
        "compress", "tiny", *FLAGS, "--calibration", "words.txt", "--eval-text", "other.txt",
        "--out", "out", folder=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place / "out", done


def test_the_output_folder_is_as_designed(finished) -> None:
    out, done = finished
    assert (out / "gguf" / "tiny-clp25.Q8_0.gguf").is_file()
    assert (out / "gguf" / "dense" / "tiny.Q8_0.gguf").is_file()
    for name in ("report.json", "report.md", "README.md", "clp_edge.json", "hf/config.json"):
        assert (out / name).is_file(), name
    assert not list(out.rglob("*.partial"))
    assert not list(out.rglob("*.tmp"))
    state = json.loads((out / "clp_edge.json").read_text())
    assert state["status"] == "finished"
    assert state["config"]["cut"]["drop_blocks"] == 2
    assert "Traceback" not in done.stderr


def test_the_report_keeps_its_contract_and_its_numbers_agree(finished) -> None:
    out, done = finished
    parse_report((out / "report.json").read_bytes())
    report = json.loads((out / "report.json").read_text())
    assert report["model"]["blocks"] == 8
    assert len(report["search"]["dropped"]) == 2
    assert all(artifact["verified"] for artifact in report["artifacts"])
    curve = {w["first"]: w["kl_raw"] for w in report["search"]["windows"]}
    assert len(curve) == 8 - 2 - 1
    assert report["search"]["kl_raw"] == curve[report["search"]["segment"]["first"]]
    left = {w["first"]: w["kl_healed"] for w in report["search"]["windows"] if w["kl_healed"]}
    assert report["search"]["criterion"] == "healed"
    assert report["search"]["kl_healed"] == min(left.values())
    assert all(after <= curve[first] for first, after in left.items())
    raw = report["search"]["raw_choice"]["first"]
    assert curve[raw] == min(curve[first] for first in left)
    assert report["quality"]["dense"]["kl"] == 0.0
    assert report["quality"]["pruned"]["kl"] > 0.0
    assert set(report["quality"]) >= {"dense", "pruned", "healed", "dense Q8_0", "healed Q8_0"}
    assert report["bench"]["speedup"][0]["decode"]["ideal"] > 1.0
    assert report["verdict"] in done.stdout
    assert set(report["seconds"]) == set(report["peak_memory_mib"])


def test_the_healed_folder_is_plain_transformers(finished) -> None:
    out, _ = finished
    model = AutoModelForCausalLM.from_pretrained(out / "hf", dtype=torch.float32)
    assert len(dissect(model)) == 6
    source = AutoModelForCausalLM.from_pretrained(out.parent / "tiny", dtype=torch.float32)
    report = json.loads((out / "report.json").read_text())
    kept = [i for i in range(8) if i not in report["search"]["dropped"]]
    changed = set()
    for place, index in enumerate(kept):
        for name, value in dissect(model).blocks[place].state_dict().items():
            if not torch.equal(value, dissect(source).blocks[index].state_dict()[name]):
                changed.add(index)
    assert changed == set(report["heal"]["trained_blocks"])


def test_the_same_command_again_computes_nothing(finished) -> None:
    out, first = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    again = run(
        "compress", "tiny", *FLAGS, "--calibration", "words.txt", "--eval-text", "other.txt",
        "--out", "out", folder=out.parent,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert "nothing was computed" in again.stderr
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("limit", "code"), [("0.000001", 4), ("1000", 0)])
def test_a_quality_gate_decides_the_exit_code_and_the_files_stay(finished, limit, code) -> None:
    out, _ = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    judged = run(
        "compress", "tiny", *FLAGS, "--calibration", "words.txt", "--eval-text", "other.txt",
        "--out", "out", "--max-kl", limit, folder=out.parent,
    )  # fmt: skip
    assert judged.returncode == code, judged.stderr
    assert ("healed Q8_0: KL to the dense model is" in judged.stderr) == (code == 4)
    assert "Traceback" not in judged.stderr
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


def test_another_command_does_not_overwrite_it(finished) -> None:
    out, _ = finished
    other = run("compress", "tiny", *FLAGS, "--seed", "1", "--out", "out", folder=out.parent)
    assert other.returncode == 1
    assert "another command" in other.stderr
    assert "Traceback" not in other.stderr


def test_ctrl_c_leaves_a_folder_that_resumes(place: Path) -> None:
    command = [
        sys.executable, "-m", "clp_edge", "compress", "tiny", *FLAGS, "--no-bench", "--json",
        "--calibration", "words.txt", "--eval-text", "other.txt", "--out", "stopped",
    ]  # fmt: skip
    environment = {**os.environ, "CLP_EDGE_CACHE": str(place / "cache")}
    child = subprocess.Popen(
        command,
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # where the tests run in the background, SIGINT is ignored, and a child inherits that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and child.poll() is None:
        state = read_state(place / "stopped")
        if state is not None and "search" in state["stages"]:
            break
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 130, said.decode()
    assert b"goes on where it stopped" in said
    assert b"Traceback" not in said
    assert not list((place / "stopped").glob("gguf/*.gguf"))

    resumed = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=600
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "Search: done before, kept" in resumed.stderr
    assert parse_report(resumed.stdout).bench is None
    assert len(list((place / "stopped").glob("gguf/*.gguf"))) == 1
