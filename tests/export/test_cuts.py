"""Which cuts a family's GGUF can express, and what a config says after one."""

from __future__ import annotations

import pytest

from clp_edge.errors import UsageError
from clp_edge.export import resolve
from clp_edge.export.gguf.cuts import after_cut, allowed, nearest_allowed, with_blocks
from clp_edge.export.gguf.families import problems
from clp_edge.export.gguf.plan import plan
from clp_edge.gguf_file.family_table import context_length, sliding_blocks
from clp_edge.segment import Segment
from tests.export.models import tiny_tokenizer
from tests.tiny import tiny_config


def test_pitfall_15b_smollm3_keeps_its_rhythm():
    config = tiny_config("smollm3", blocks=16)
    assert problems(config) == []
    right = [s for s in segments(16) if allowed(config, s) is None]
    # Four or a multiple anywhere, or whatever leaves nothing behind it that would move.
    assert {s for s in right if s.last < 15} == {
        s for s in segments(16, last=14) if s.count % 4 == 0
    }
    assert {s for s in right if s.last == 15} == {s for s in segments(16) if s.last == 15}
    reason = allowed(config, Segment(4, 6))
    assert "every fourth block" in reason
    assert "cut 4, 8, ... blocks" in reason


def segments(total, *, last=None):
    return [
        Segment(a, b)
        for a in range(total)
        for b in range(a, (total - 1 if last is None else last) + 1)
        if b - a + 1 <= total - 2
    ]


def test_the_nearest_allowed_segments():
    config = tiny_config("smollm3", blocks=16)
    assert nearest_allowed(config, Segment(4, 6)) == [Segment(3, 6), Segment(4, 7), Segment(2, 5)]
    assert nearest_allowed(tiny_config("llama"), Segment(2, 3), count=1) == [Segment(2, 3)]
    unbroken = tiny_config("llama", hidden_act="gelu")  # no segment's fault
    assert allowed(unbroken, Segment(2, 3)) is None


def test_families_without_a_rhythm_allow_every_cut():
    for model_type in ("llama", "qwen2", "gemma2", "gemma3_text", "granite", "olmo2"):
        config = tiny_config(model_type, tie_word_embeddings=model_type == "gemma2")
        assert problems(config) == []
        assert all(allowed(config, segment) is None for segment in segments(8)), model_type


def test_pitfall_2_a_cut_keeps_each_blocks_own_kind():
    config = tiny_config("gemma2", blocks=6)
    assert sliding_blocks(config) == [True, False] * 3
    assert sliding_blocks(after_cut(config, [1, 2, 3])) == [True, True, False]
    assert sliding_blocks(with_blocks(config, 3)) == [True, False, True]
    assert sliding_blocks(config) == [True, False] * 3
    assert after_cut(config, []) is config
    assert with_blocks(config, 6) is config
    with pytest.raises(UsageError, match="blocks 0-5"):
        after_cut(config, [6])


def test_pitfall_15b_the_window_bounds_the_context_while_a_block_slides():
    config = tiny_config("qwen2", blocks=5)
    assert sliding_blocks(config) == [False, False, False, True, True]
    assert context_length(config) == 16
    assert context_length(after_cut(config, [3, 4])) == 512
    assert context_length(tiny_config("gemma2")) == 512


def test_pitfall_15b_the_plan_of_a_forbidden_cut_says_so():
    hf = tiny_tokenizer("smollm")
    config = tiny_config("smollm3", blocks=8, vocab_size=len(hf))
    target = resolve("f16")
    whole = plan(config, hf, target)
    right = plan(config, hf, target, dropped=range(2, 6))
    assert whole.problems == right.problems == ()
    assert right.predicted_bytes < 0.7 * whole.predicted_bytes
    assert right.predicted_bytes == plan(config, hf, target, blocks=4).predicted_bytes
    wrong = plan(config, hf, target, dropped=range(2, 5))
    assert ["every fourth block" in str(problem) for problem in wrong.problems] == [True]
