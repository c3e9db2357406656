"""Packing: the BOS rule, the order of tokens, and the text behind each sequence."""

from __future__ import annotations

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from clp_edge.data import follows_bos, pack
from clp_edge.data.packing import pack_with_spans, spread
from tests.models.tiny_gguf import byte_level_tokenizer

TEXTS = ["the model reads the text", "numbers 12 and 34", "Le café 中文"]


def with_rule(single: list[str]) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a post-processor: <|im_start|> is BOS (1), <|im_end|> EOS (2)."""
    tokenizer = byte_level_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )


def test_the_bos_rule_is_the_tokenizers_own():
    assert follows_bos(byte_level_tokenizer()) is None  # it has a bos_token and does not add it
    assert follows_bos(with_rule(["<|im_start|>", "$A"])) == 1
    assert follows_bos(with_rule(["<|im_start|>", "$A", "<|im_end|>"])) == 1
    assert follows_bos(with_rule(["$A", "<|im_end|>"])) is None  # an EOS behind is no BOS


def test_pack_joins_tokenizes_once_and_drops_the_remainder():
    tokenizer = byte_level_tokenizer()
    flat = tokenizer("\n\n".join(TEXTS), add_special_tokens=False)["input_ids"]
    packed = pack(TEXTS, tokenizer, 7)
    assert packed.dtype == torch.int64
    assert packed.shape == (len(flat) // 7, 7)
    assert packed.flatten().tolist() == flat[: packed.numel()]
    assert len(flat) - packed.numel() < 7


def test_pitfall_5_every_sequence_has_its_bos_where_the_model_has_one():
    tokenizer = with_rule(["<|im_start|>", "$A"])
    flat = tokenizer("\n\n".join(TEXTS), add_special_tokens=False)["input_ids"]
    packed = pack(TEXTS, tokenizer, 8)
    assert packed.shape == (len(flat) // 7, 8)
    assert packed[:, 0].tolist() == [1] * len(packed)
    assert packed[:, 1:].flatten().tolist() == flat[: 7 * len(packed)]
    assert 1 not in packed[:, 1:]


def test_text_shorter_than_a_sequence_gives_none():
    assert pack(["ab"], byte_level_tokenizer(), 8).shape == (0, 8)
    with pytest.raises(ValueError, match="no room"):
        pack(["ab"], with_rule(["<|im_start|>", "$A"]), 1)


def test_spans_are_the_text_behind_each_sequence():
    tokenizer = byte_level_tokenizer()
    text = "the model reads the text and words such as models " * 3
    packed = pack_with_spans([text], tokenizer, 6)
    for index, ids in enumerate(packed.ids.tolist()):
        assert packed.text_of(index) == tokenizer.decode(ids)
    joined = "".join(packed.text_of(i) for i in range(len(packed.ids)))
    assert text.startswith(joined)
    assert packed.tokens >= packed.ids.numel()


def test_a_tokenizer_without_offsets_gets_wide_spans():
    class Slow:
        is_fast = False

        def __call__(self, text, add_special_tokens=True, **_):
            return {"input_ids": [ord(c) for c in text]}

    packed = pack_with_spans(["abcdefghij" * 10], Slow(), 10)
    assert packed.ids[1].tolist() == [ord(c) for c in "abcdefghij"]
    assert all("abcdefghij" in packed.text_of(i) for i in range(10))


def test_spread_is_even_and_not_the_head():
    assert spread(10, 5) == [1, 3, 5, 7, 9]
    assert spread(100, 2) == [25, 75]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(0, 5) == []
