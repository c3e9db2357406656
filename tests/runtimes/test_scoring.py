"""Choices after a shared context score as separate runs do, in every runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clp_edge.errors import UsageError
from clp_edge.export.gguf import tokenizer as tokenizers
from clp_edge.export.gguf.writer import write_f16
from clp_edge.runtimes import open_artifact
from clp_edge.runtimes.hf import score_branches
from clp_edge.runtimes.scoring import score_by_logits, score_rows
from tests.export.models import tiny_folder
from tests.tiny import random_ids, tiny_model

CONTEXT = random_ids(1, 21, seed=1)[0].tolist()
CHOICES = [random_ids(1, n, seed=n)[0].tolist() for n in (1, 4, 9, 2)]


def apart(model: Any, context: list[int], choices: list[list[int]]) -> list[tuple[float, bool]]:
    """Each choice in a run of its own, the definition in float64."""
    found = []
    for choice in choices:
        with torch.no_grad():
            logits = model(torch.tensor([context + choice])).logits[0].double()
        rows = torch.log_softmax(logits, -1)[len(context) - 1 : -1]
        total = rows[torch.arange(len(choice)), torch.tensor(choice)].sum()
        found.append((float(total), rows.argmax(-1).tolist() == choice))
    return found


def by_model(model: Any) -> Any:
    def forward(ids: torch.Tensor, cache: Any, keep: int) -> tuple[torch.Tensor, Any]:
        with torch.no_grad():
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=keep)
        return out.logits, out.past_key_values

    return forward


def agree(found, expected, tolerance: float) -> None:
    assert [score for score, _ in found] == pytest.approx([s for s, _ in expected], abs=tolerance)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def greedy_choice(model: Any, context: list[int], steps: int) -> list[int]:
    made: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            made.append(int(model(torch.tensor([context + made])).logits[0, -1].argmax()))
    return made


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2", "granite"])
def test_torch_on_one_cache(family: str) -> None:
    """gemma2's and qwen2's windows of 16 are shorter than the context."""
    model = tiny_model(family, blocks=4)
    choices = [*CHOICES, greedy_choice(model, CONTEXT, 3)]
    found = score_branches(by_model(model), CONTEXT, choices)
    agree(found, apart(model, CONTEXT, choices), 2e-3)
    assert [greedy for _, greedy in found][-1] is True


def test_torch_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from clp_edge.runtimes import hf

    model = tiny_model("llama", blocks=2)
    expected = score_branches(by_model(model), CONTEXT, CHOICES)
    monkeypatch.setattr(hf, "_PART_BYTES", 2 * 4 * 8 * 320)  # two choices at once
    agree(score_branches(by_model(model), CONTEXT, CHOICES), expected, 1e-3)


def test_plain_logits_in_any_parts() -> None:
    model = tiny_model("llama", blocks=2)

    def iter_logits(ids):
        with torch.no_grad():
            logits = model(torch.tensor([list(ids)])).logits[0].numpy()
        for start in range(0, len(logits), 7):
            yield logits[start : start + 7]

    agree(score_by_logits(iter_logits, CONTEXT, CHOICES), apart(model, CONTEXT, CHOICES), 1e-3)


def test_a_row_of_large_logits_does_not_overflow() -> None:
    rows = np.array([[1000.0, 999.0]], dtype=np.float32)
    assert score_rows(rows, [1])[0] == pytest.approx(-1.3132617)
    assert score_rows(rows, [0])[1] is True


@pytest.mark.parametrize(
    ("context", "choices", "message"),
    [([], [[1]], "no context"), ([1], [], "no tokens"), ([1], [[2], []], "no tokens")],
)
def test_nothing_to_score(context, choices, message) -> None:
    with pytest.raises(UsageError, match=message):
        score_branches(by_model(None), context, choices)


@pytest.mark.llama
def test_llama_and_torch_sessions(tmp_path) -> None:
    folder, model, hf = tiny_folder(tmp_path / "llama", blocks=2)
    path = tmp_path / "model.gguf"
    entries = tokenizers.entries(model.config, hf)
    write_f16(folder, path, config=model.config, tokenizer_entries=entries, metadata={})
    choices = [*CHOICES, greedy_choice(model, CONTEXT, 3)]
    expected = apart(model, CONTEXT, choices)
    with open_artifact(folder, threads=1, context=64) as opened:
        agree(opened.score(CONTEXT, choices), expected, 2e-3)
        with pytest.raises(UsageError, match="do not fit the open context of 64"):
            opened.score(CONTEXT * 3, choices)
    with open_artifact(path, threads=1, context=64, kv_type="f32") as opened:
        found = opened.score(CONTEXT, choices)
        agree(found, expected, 0.15)  # half precision weights
        # more than are computed beside each other, and more than the context (256) holds together
        agree(opened.score(CONTEXT, choices * 4), found * 4, 0.05)
        long = [random_ids(1, 100, seed=n)[0].tolist() for n in range(3)]
        agree(opened.score(CONTEXT, long), apart(model, CONTEXT, long), 0.5)
        before = opened.logits(CONTEXT)  # scoring does not disturb the other answers
        opened.score(CONTEXT, choices)
        assert np.array_equal(opened.logits(CONTEXT), before)
        with pytest.raises(UsageError, match="do not fit the open context of 256"):
            opened.score(CONTEXT * 15, choices)
        with pytest.raises(UsageError, match="outside the vocabulary"):
            opened.score(CONTEXT, [[10**6]])
    for batch in (1, 5):  # fewer than BRANCHES: llama.cpp would abort on as many sequences
        with open_artifact(path, threads=1, context=64, kv_type="f32", batch=batch) as chunked:
            agree(chunked.score(CONTEXT, choices), found, 0.05)
