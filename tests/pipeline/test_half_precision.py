"""The whole pipeline in bfloat16 and float16, and each stage's results beside float32's.

Pitfall 29: one constructor that fell back to float32 killed the seventh of eight stages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from clp_edge.data import write_own_text
from clp_edge.heal import TuningSettings, heal
from clp_edge.models.anatomy import Anatomy, dissect
from clp_edge.models.surgery import remove_blocks
from clp_edge.report import parse_report
from clp_edge.search import search
from clp_edge.segment import Segment
from tests.conftest import byte_level_tokenizer, save_tiny_llama, write_words
from tests.tiny import random_ids, tiny_model

HALVES = [torch.bfloat16, torch.float16]
# relative rounding of one number: 2^-9 and 2^-12; a pass through eight blocks adds some up
TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}


def body(model_type: str, dtype: torch.dtype) -> Anatomy:
    return dissect(tiny_model(model_type).to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_search_finds_what_float32_finds(model_type: str, dtype: torch.dtype) -> None:
    ids = random_ids(4, 32)
    exact = search(body(model_type, torch.float32), ids, count=2, method="exact")
    half = search(body(model_type, dtype), ids, count=2, method="exact")
    assert half.segment == exact.segment
    for ours, theirs in zip(half.windows, exact.windows, strict=True):
        assert ours.kl == pytest.approx(theirs.kl, rel=TOLERANCE[dtype])
    gate = search(body(model_type, dtype), ids, count=2, method="gate")
    assert gate.segment == exact.segment
    # it moved: a gradient that vanished would leave every start where it was
    assert gate.trace is not None
    assert any(len(set(path)) > 1 for path in gate.trace.paths)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("model_type", ["llama", "granite", "gemma2"])
def test_healing_brings_what_it_brings_in_float32(model_type: str, dtype: torch.dtype) -> None:
    fit, select = random_ids(24, 48, seed=1), random_ids(6, 48, seed=2)
    tuning = TuningSettings(steps=20, tokens=192, checks=2)
    exact = heal(body(model_type, torch.float32), Segment(3, 4), fit, select, tuning=tuning)
    half = heal(body(model_type, dtype), Segment(3, 4), fit, select, tuning=tuning)
    # 3e-4: where the KL itself is a thousandth, the states' rounding is a part of it
    near = {"rel": TOLERANCE[dtype], "abs": 3e-4 if dtype == torch.bfloat16 else 3e-5}
    assert half.kl_cut == pytest.approx(exact.kl_cut, **near)
    assert half.kl == pytest.approx(exact.kl, **near)
    assert all(t.dtype == torch.float32 for state in half.state.values() for t in state.values())


@pytest.mark.parametrize("dtype", HALVES)
def test_the_kl_of_the_healing_is_that_of_the_applied_model(dtype: torch.dtype) -> None:
    from clp_edge.evaluate import DenseReference, measure_model

    fit, select = random_ids(16, 40, seed=1), random_ids(4, 40, seed=2)
    dense = body("llama", dtype)
    found = heal(dense, Segment(5, 6), fit, select, tuning=TuningSettings(steps=10, tokens=160))
    reference = DenseReference.build(dense, select)
    pruned = tiny_model("llama").to(dtype)
    remove_blocks(pruned, (5, 6))
    found.apply(pruned)
    assert next(pruned.parameters()).dtype == dtype
    quality = measure_model(dissect(pruned), select, reference)
    assert quality.kl == pytest.approx(found.kl, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", HALVES)
def test_own_text_is_written(dtype: torch.dtype) -> None:
    tokenizer = byte_level_tokenizer()
    model: Any = tiny_model("llama", vocab_size=len(tokenizer)).to(dtype)
    found = write_own_text(model, tokenizer, sequences=5, length=16, seed=0, batch=2)
    assert found.sequences == 5
    assert int(found.fit.max()) < len(tokenizer)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    save_tiny_llama(folder / "tiny", blocks=6)
    write_words(folder / "words.txt", seed=0, paragraphs=300)
    write_words(folder / "other.txt", seed=1, paragraphs=100)
    return folder


def compress(place: Path, dtype: str) -> dict[str, Any]:
    out = place / dtype
    done = subprocess.run(
        [
            sys.executable, "-m", "clp_edge", "compress", "tiny", "--preset", "quick", "--no-bench",
            "--target", "gguf-q8_0", "--drop-blocks", "2", "--dtype", dtype,
            "--calibration", "words.txt", "--eval-text", "other.txt", "--out", str(out),
        ],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "CLP_EDGE_CACHE": str(place / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


@pytest.mark.llama
def test_compress_goes_through_in_every_dtype_with_the_same_results(place: Path) -> None:
    exact = compress(place, "float32")
    for dtype in HALVES:
        name = str(dtype).removeprefix("torch.")
        report = compress(place, name)
        parse_report(json.dumps(report))
        assert report["search"]["dropped"] == exact["search"]["dropped"]
        assert set(report["quality"]) == set(exact["quality"])
        for who, ours in report["quality"].items():
            theirs = exact["quality"][who]
            assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=TOLERANCE[dtype])
            # Q8_0 next to what it was made of: 2e-3 is the reference's own rounding in bfloat16
            assert ours["kl"] == pytest.approx(theirs["kl"], rel=2 * TOLERANCE[dtype], abs=2e-3)
        model = AutoModelForCausalLM.from_pretrained(place / name / "hf", dtype="auto")
        assert len(dissect(model)) == 4
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
