"""The evaluate stage on a tiny model: every side is asked all, and the record says it all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from clp_edge.errors import UsageError
from clp_edge.evaluate.gate import QualityGate
from clp_edge.models.anatomy import dissect
from clp_edge.pipeline.folder import HF_FOLDER
from clp_edge.pipeline.stages import cut, evaluate, text
from clp_edge.records import (
    EvaluateRecord,
    SanityRecord,
    Span,
    TaskRecord,
    decode,
    encode,
    from_plain,
)
from tests.conftest import WORDS
from tests.tiny import random_ids

ITEMS = 24


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """Questions whose right answer is what the dense model finds likelier, for most of them."""
    words = WORDS.split()
    lines = [
        {"context": " ".join(words[at : at + 4]), "choices": [words[at + 4], "zebra"], "label": 0}
        for at in range(ITEMS)
    ]
    path = tmp_path / "next_word.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def context(tiny_llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the stage reads of a run: a dense model, the same cut, and one healed 'file', which is
    a folder that torch opens."""
    out = tmp_path / "out"
    healed = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    with torch.no_grad():
        healed.model.layers[3].mlp.down_proj.weight.mul_(0.5)
    healed.save_pretrained(out / HF_FOLDER)
    AutoTokenizer.from_pretrained(tiny_llama_folder).save_pretrained(out / HF_FOLDER)
    shutil.copytree(out / HF_FOLDER, out / "file")
    dense = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32).eval()
    monkeypatch.setattr(text, "evaluation_ids", lambda _: random_ids(6, 24, vocabulary=300))
    monkeypatch.setattr(cut, "pruned", lambda _, segment: healed)
    artifact = SimpleNamespace(name="healed file", variant="healed", path="file")
    return SimpleNamespace(
        ground=SimpleNamespace(
            tokenizer=AutoTokenizer.from_pretrained(tiny_llama_folder),
            compute=torch.float32,
            device="cpu",
        ),
        out=out,
        record=lambda _: SimpleNamespace(artifacts=(artifact,), segment=Span(3, 3)),
        body=lambda: dissect(dense),
        let_go=lambda: None,
    )


def test_every_side_is_measured_asked_and_paired(context, task_file, tmp_path) -> None:
    seen: list[float] = []
    given = evaluate.Inputs(24, 1, None, 1, (str(task_file),))
    record = evaluate.run(given, context, tmp_path, lambda d, t, note="": seen.append(d / t))
    record = decode(encode(record), EvaluateRecord)  # as the next stage and the report read it
    quality = record.quality
    assert set(quality) == {"dense", "pruned", "healed", "healed file"}
    assert seen == sorted(seen)
    assert seen[-1] == 1.0

    dense, file = quality["dense"], quality["healed file"]
    assert (dense.ppl_ratio, dense.ppl_ratio_low, dense.ppl_ratio_high) == (1.0, 1.0, 1.0)
    assert dense.kl_max == 0.0
    assert file.perplexity is not None
    assert dense.perplexity is not None
    assert file.ppl_ratio == pytest.approx(file.perplexity / dense.perplexity)
    assert file.ppl_ratio_low < file.ppl_ratio < file.ppl_ratio_high
    assert 0 < file.kl_median < file.kl_90 < file.kl_99 <= file.kl_max
    assert len(file.sequence_nll) == len(file.sequence_kl) == 6
    assert file.ppl_ratio == pytest.approx(quality["healed"].ppl_ratio, rel=1e-4)

    assert "next_word" not in quality["pruned"].tasks
    tasks = {
        name: from_plain(quality[name].tasks["next_word"], TaskRecord)
        for name in ("dense", "healed", "healed file")
    }
    assert tasks["healed"] == tasks["healed file"]
    asked = tasks["healed file"]
    assert (asked.form, asked.items, asked.metric) == ("choices", ITEMS, "acc_norm")
    for metric, found in asked.metrics.items():
        assert found.chance == 0.5
        assert found.value == found.hits.count("1") / ITEMS
        theirs = tasks["dense"].metrics[metric]
        assert found.dense_at_chance == theirs.at_chance == (theirs.low <= 0.5)
        if found.retention is None:
            assert found.dense_at_chance
        else:
            assert found.retention == pytest.approx((found.value - 0.5) / (theirs.value - 0.5))

    # the torch model speaks for the dense side, which has no file; the healed model speaks before
    # quantization and as every file
    speakers = {name for name, side in quality.items() if "sanity" in side.tasks}
    assert speakers == {"dense", "healed", "healed file"}
    (sample,) = record.samples
    assert (sample.dense_by, sample.healed_by) == ("dense", "healed file")
    assert sample.mended == sample.healed, "this file is the healed model itself"
    sanity = from_plain(file.tasks["sanity"], SanityRecord)
    assert sanity.total == 6
    assert {answer.kind for answer in sanity.answers} == set(sanity.kinds)
    assert sum(kind.passed for kind in sanity.kinds.values()) == sanity.passed
    assert sanity.low <= sanity.passed / 6 <= sanity.high

    assert QualityGate(max_kl=file.kl, max_ppl_ratio=file.ppl_ratio).failures(file) == ()
    assert len(QualityGate(max_kl=file.kl / 2, max_ppl_ratio=0.1).failures(file)) == 2


def test_a_broken_task_file_is_refused_before_anything_is_measured(
    context, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"context": "a", "choices": ["b", "c"], "label": 2}')
    monkeypatch.setattr(evaluate.evaluate.DenseReference, "build", None)
    given = evaluate.Inputs(24, 1, None, 1, (str(path),))
    with pytest.raises(UsageError, match=r"broken.jsonl, line 1: `label` 2"):
        evaluate.run(given, context, tmp_path, lambda *_: None)
