"""Steps with groups as rows: the numbers of transformers' attention, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from clp_edge.data import grouped_attention, write_own_text
from clp_edge.data.grouped_attention import groups_as_rows, one_token
from clp_edge.data.growing_cache import growing_cache
from tests.conftest import byte_level_tokenizer
from tests.tiny import random_ids, tiny_model

FAMILIES = ["llama", "qwen3", "gemma3_text", "phi3"]


@torch.no_grad()
def stepped(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of each position, taken token by token."""
    cache, logits = growing_cache(model.config), []
    for position in range(ids.shape[1]):
        step = ids[:, position : position + 1]
        logits.append(model(step, past_key_values=cache, use_cache=True).logits)
    return torch.cat(logits, dim=1)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the keys of each call that went our way."""
    seen: list[tuple[int, ...]] = []

    def counted(query: Any, key: Any, value: Any, scale: float | None) -> Any:
        seen.append(tuple(key.shape))
        return one_token(query, key, value, scale)

    monkeypatch.setattr(grouped_attention, "one_token", counted)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_give_the_numbers_of_the_library(family: str, rows: list[Any]) -> None:
    # more tokens than Gemma 3's window holds
    model = tiny_model(family, blocks=3, attn_implementation="sdpa")
    ids = random_ids(2, 24, seed=1)
    theirs = stepped(model, ids)
    assert rows == []
    with groups_as_rows():
        ours = stepped(model, ids)
    grouped = model.config.num_attention_heads > model.config.num_key_value_heads
    assert (len(rows) > 0) == grouped
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_one_token_is_softmax_of_the_scores_in_float64(scale: float | None) -> None:
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(3, 6, 1, 16, generator=draw)
    key, value = (torch.randn(3, 2, 9, size, generator=draw) for size in (16, 16))
    wide = [part.double().repeat_interleave(3, dim=1) for part in (key, value)]
    scores = query.double() @ wide[0].mT * (0.25 if scale is None else scale)
    expected = (scores.softmax(-1) @ wide[1]).transpose(1, 2)
    ours = one_token(query, key, value, scale).double()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6)


def test_longer_steps_masks_and_dropout_are_left_to_the_library(rows: list[Any]) -> None:
    model = tiny_model("llama", blocks=2, attn_implementation="sdpa")
    ids = random_ids(2, 8, seed=2)
    hidden = torch.ones_like(ids)
    hidden[0, :3] = 0  # padding on the left
    with groups_as_rows(), torch.no_grad():
        cache = growing_cache(model.config)
        model(ids, past_key_values=cache, attention_mask=hidden, use_cache=True)
        more = torch.cat([hidden, hidden[:, -1:]], dim=1)
        model(ids[:, -1:], past_key_values=cache, attention_mask=more, use_cache=True)
    assert rows == []
    query, key = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 5, 8)
    for how in ({"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": torch.zeros(4)}):
        assert not grouped_attention._is_step(query, key, None, how)
    assert grouped_attention._is_step(query, key, None, {"dropout": 0.0, "softcap": None})


def test_what_was_there_is_there_again_also_after_an_error() -> None:
    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def broken() -> None:
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not usual
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), groups_as_rows():
        broken()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is usual

    def another(*args: Any, **kwargs: Any) -> Any:
        return usual(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = another
    try:
        with groups_as_rows():
            pass
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is another
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def test_writing_takes_its_steps_so(rows: list[Any]) -> None:
    tokenizer = byte_level_tokenizer()
    model = tiny_model("llama", blocks=2, vocab_size=len(tokenizer), attn_implementation="sdpa")
    write_own_text(model, tokenizer, sequences=4, length=10, seed=0)
    assert len(rows) == 2 * 9  # two blocks, nine tokens behind the first
    assert ALL_ATTENTION_FUNCTIONS["sdpa"].__module__.startswith("transformers")
