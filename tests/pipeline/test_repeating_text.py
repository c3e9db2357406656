"""Calibration text as the stages use it: what repeats is told, and nobody reads only its start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from clp_edge.cli import app
from clp_edge.data import Calibration
from clp_edge.pipeline.stages.search import parts
from tests.conftest import save_tiny_llama, write_words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repeating")
    save_tiny_llama(folder / "tiny", blocks=8)
    paragraphs = write_words(folder / "words.txt", seed=0, paragraphs=500).read_text().split("\n\n")
    texts = ["\n".join(paragraphs[i : i + 4]) for i in range(0, 500, 4)]
    texts += texts[:30]  # thirty records stand there twice, and seven again in a longer one
    texts += [f"{text} and more" for text in texts[40:47]]
    records = "\n".join(json.dumps({"text": text}) for text in texts)
    (folder / "twice.jsonl").write_text(records, encoding="utf-8")
    prompt = " ".join(paragraphs[0].split()[:40])
    same = "\n".join(json.dumps({"prompt": prompt, "response": text}) for text in texts)
    (folder / "prompted.jsonl").write_text(same, encoding="utf-8")
    long = " ".join(paragraphs[:6])
    hardly = "\n".join(json.dumps({"text": f"{long} {index}"}) for index in range(132))
    (folder / "hardly.jsonl").write_text(hardly, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def call(text: str, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a search."""
    given = ("--preset", "quick", "--drop-blocks", "2", "--calibration", text)
    done = CliRunner().invoke(app, ["search", "tiny", *given, *arguments])
    assert "Traceback" not in done.output
    return done.exit_code, done.stdout, done.stderr


def test_what_repeats_is_told_and_kept_in_the_record(place: Path) -> None:
    code, _, err = call("twice.jsonl", "--out", "twice")
    assert code == 0, err
    said = " ".join(err.split())
    assert "the calibration text repeats itself: 30 exact copies of others were dropped" in said
    assert "14 of 132 documents share long passages with others and are not held back" in said
    record = json.loads((place / "twice" / "stages" / "calibrate" / "result.json").read_text())
    assert "'copies_dropped': 30" in str(record)
    assert "'repeats_not_held_back': 14" in str(record)
    code, _, err = call("words.txt", "--out", "once")
    assert code == 0, err
    assert "repeats itself" not in err


def test_a_prompt_in_every_record_is_no_repeat(place: Path) -> None:
    code, _, err = call("prompted.jsonl", "--out", "prompted")
    assert code == 0, err
    said = " ".join(err.split())
    assert "14 of 132 documents share long passages with others and are not held back" in said


def test_records_that_are_all_alike_are_refused_before_any_work(place: Path) -> None:
    code, out, err = call("hardly.jsonl", "--out", "hardly")
    assert code == 1
    said = " ".join(err.split())
    assert "hardly.jsonl repeats itself: 132 of 132 documents share long passages" in said
    assert "take out what nearly all records consist of" in said
    assert out == ""
    assert not (place / "hardly").exists()


def test_search_reads_from_all_through_the_text() -> None:
    rows = torch.arange(100).view(100, 1).expand(100, 8).contiguous()
    text = Calibration(
        fit=rows[:80], select=rows[80:90], report=rows[90:], origin="", sha256="",
        fit_texts=(), select_texts=(), report_texts=(), report_sequences=(),
    )  # fmt: skip
    judged, fitted = parts(text, tokens=5 * 8, refit_tokens=4 * 8)
    assert judged[:, 0].tolist() == [81, 83, 85, 87, 89]
    assert fitted[:, 0].tolist() == [10, 30, 50, 70]
    judged, fitted = parts(text, tokens=14 * 8, refit_tokens=4 * 8)
    assert judged[:, 0].tolist() == [*range(80, 90), 10, 30, 50, 70]
    assert fitted[:, 0].tolist() == [9, 29, 49, 69]
