"""Byte-level BPE tokenizers: recognised by what they do, refused by the part that is unknown."""

from __future__ import annotations

import json

import pytest
from gguf import GGUFValueType, GGUFWriter
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from clp_edge.errors import UnsupportedModelError
from clp_edge.export import plan, resolve
from clp_edge.export.gguf import tokenizer as tokenizers
from clp_edge.export.gguf.verify import check_tokens
from clp_edge.runtimes import open_artifact
from tests.export.models import CHATML, KINDS, tiny_tokenizer
from tests.export.vocabulary import llama_cpp_ids, write_vocabulary


def by_key(config, hf):
    return {entry.key: entry.value for entry in tokenizers.entries(config, hf)}


@pytest.mark.parametrize("kind", KINDS)
def test_pitfall_13_each_kind_is_recognised(kind):
    assert tokenizers.recognise(tiny_tokenizer(kind)) == kind


@pytest.mark.llama
@pytest.mark.parametrize("kind", KINDS)
def test_pitfall_13_equal_ids_in_llama_cpp(tiny, tmp_path, kind):
    hf = tiny_tokenizer(kind, adds_bos=kind == "qwen2")
    entries = tokenizers.entries(tiny.config, hf)
    path = tiny.write(tmp_path / f"{kind}.gguf", entries=entries)
    with open_artifact(path, threads=1, context=64) as session:
        assert check_tokens(session, path, hf) == 16


@pytest.mark.llama
@pytest.mark.parametrize("ignores", [True, False])
def test_whole_pieces_are_taken_without_merging_only_where_the_tokenizer_does(
    tiny, tmp_path, ignores
):
    """Llama 3 ignores merges for a piece that is a token; the word below no merge can build."""
    hf = tiny_tokenizer("llama-bpe")
    word = "Ġxylophone"
    old = hf.backend_tokenizer
    vocabulary = {**old.get_vocab(with_added_tokens=False), word: 480}
    merges = [tuple(m) for m in json.loads(old.to_str())["model"]["merges"]]
    old.model = BPE(vocab=vocabulary, merges=merges, ignore_merges=ignores)
    entries = tokenizers.entries(tiny.config, hf)
    path = tiny.write(tmp_path / "x.gguf", entries=entries)
    ids = hf.encode("a xylophone")
    assert (480 in ids) == ignores
    with open_artifact(path, threads=1, context=64) as session:
        assert session.tokenize("a xylophone") == ids


def wordpiece():
    return Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))


def without_bytes():
    return Tokenizer(models.BPE(byte_fallback=True))


def unigram():
    return Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))


def odd_pattern():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def lower_case():
    tokenizer = tiny_tokenizer("smollm").backend_tokenizer
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def prefix_space():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (wordpiece, "WordPiece"),
        (without_bytes, "256 of the 256 byte tokens are missing"),
        (unigram, "Unigram"),
        (odd_pattern, "Whitespace"),
        (lower_case, "Lowercase"),
        (prefix_space, "add_prefix_space"),
    ],
)
def test_pitfall_13_anything_else_is_refused_at_plan_time(tiny, build, named):
    hf = PreTrainedTokenizerFast(tokenizer_object=build())
    found = plan(tiny.config, hf, resolve("q8_0"))
    assert [type(p) for p in found.problems] == [UnsupportedModelError]
    assert named in str(found.problems[0])


@pytest.mark.llama
def test_a_name_that_llama_cpp_takes_for_an_end_is_said_and_compared_as_such(tiny, tmp_path):
    """Qwen's vocabulary has an ordinary token "</s>", which llama.cpp makes a control token."""
    hf = tiny_tokenizer("qwen2")
    old = hf.backend_tokenizer
    model = json.loads(old.to_str())["model"]
    merges = [*(tuple(m) for m in model["merges"]), ("<", "/"), ("</", "s"), ("</s", ">")]
    vocabulary = dict(model["vocab"])
    for left, right in merges:
        vocabulary.setdefault(left + right, max(vocabulary.values()) + 1)
    old.model = BPE(vocab=vocabulary, merges=merges)
    config = type(tiny.config)(vocab_size=max(hf.get_vocab().values()) + 1)
    assert any("'</s>', an ordinary token here" in note for note in tokenizers.notes(hf))
    path = write_vocabulary(tmp_path / "x.gguf", tokenizers.entries(config, hf))
    text = "a<s></s>[x"
    (theirs,) = llama_cpp_ids(path, [(text, False)])
    assert vocabulary["</s>"] in theirs
    assert tokenizers.as_written(hf).encode(text) == theirs
    assert len(hf) == len(vocabulary)  # the tokenizer itself is not changed


@pytest.mark.llama
def test_ignore_merges_is_free_where_merging_makes_every_token(tiny, tmp_path):
    """GPT-OSS says ignore_merges, and llama.cpp's gpt-4o does not do it."""
    hf = tiny_tokenizer("gpt-2")
    old = hf.backend_tokenizer
    model = json.loads(old.to_str())["model"]
    merges = [tuple(m) for m in model["merges"]]
    old.model = BPE(vocab=model["vocab"], merges=merges, ignore_merges=True)
    assert tokenizers.recognise(hf) == "gpt-2"
    vocabulary = {**model["vocab"], "Ġxylophone": max(model["vocab"].values()) + 1}
    old.model = BPE(vocab=vocabulary, merges=merges, ignore_merges=True)
    with pytest.raises(UnsupportedModelError, match="does not make 'Ġxylophone'"):
        tokenizers.recognise(hf)


def test_a_token_that_takes_its_neighbours_spaces_is_refused(tiny):
    from tokenizers import AddedToken

    hf = tiny_tokenizer("smollm")
    hf.add_tokens([AddedToken("<mask>", lstrip=True)])
    with pytest.raises(UnsupportedModelError, match="'<mask>' looks at the text beside it"):
        tokenizers.entries(tiny.config, hf)


def test_types_ids_and_the_unused_rows(tiny):
    hf = tiny_tokenizer("smollm")
    found = by_key(tiny.config, hf)
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == len(set(tokens)) == tiny.config.vocab_size
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|done|>"]
    assert kinds[:4] == [3, 3, 3, 1]  # control, control, control, normal
    assert tokens[-1] == f"[PAD{tiny.config.vocab_size - 1}]"
    assert kinds[-3:] == [5, 5, 5]  # unused
    assert found["tokenizer.ggml.bos_token_id"] == 1
    assert found["tokenizer.ggml.eos_token_id"] == 0
    assert found["tokenizer.ggml.eot_token_id"] == 2  # what ends a chat turn
    assert found["tokenizer.chat_template"] == CHATML
    assert all(len(merge.split(" ")) == 2 for merge in found["tokenizer.ggml.merges"])


def test_pitfall_5_the_bos_rule_is_what_encoding_does(tiny):
    assert by_key(tiny.config, tiny_tokenizer("smollm"))["tokenizer.ggml.add_bos_token"] is False
    adds = tiny_tokenizer("smollm", adds_bos=True)
    assert by_key(tiny.config, adds)["tokenizer.ggml.add_bos_token"] is True


def test_a_vocabulary_larger_than_the_embedding_is_refused(tiny):
    hf = tiny_tokenizer("smollm")
    hf.add_tokens([f"extra{i}" for i in range(9)])
    with pytest.raises(UnsupportedModelError, match="has no row in the embedding"):
        tokenizers.entries(tiny.config, hf)


def test_nfc_is_said(tiny):
    notes = plan(tiny.config, tiny_tokenizer("qwen2"), resolve("f16")).notes
    assert any("NFC" in note for note in notes)


def test_pitfall_13_the_keys_of_a_gguf_source_are_carried_verbatim(tiny, tmp_path):
    size = tiny.config.vocab_size
    path = tmp_path / "tokenizer.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_key_value("tokenizer.ggml.pre", "of-its-own", GGUFValueType.STRING)
    writer.add_key_value("tokenizer.ggml.scores", [0.5, 1.0], GGUFValueType.ARRAY)
    tokens = [f"t{i}" for i in range(size)]
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_key_value("tokenizer.ggml.odd", 7, GGUFValueType.UINT8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    carried = {e.key: e for e in tokenizers.gguf_entries(tiny.config, None, path)}
    assert list(carried) == [
        f"tokenizer.ggml.{name}" for name in ("pre", "scores", "tokens", "odd")
    ]
    assert carried["tokenizer.ggml.pre"].value == "of-its-own"
    assert carried["tokenizer.ggml.tokens"].value == tokens
    odd, scores = carried["tokenizer.ggml.odd"], carried["tokenizer.ggml.scores"]
    assert (odd.value, odd.kind) == (7, GGUFValueType.UINT8)
    assert (scores.value, scores.sub_kind) == ([0.5, 1.0], GGUFValueType.FLOAT32)
    tiny_config = type(tiny.config)(**{**tiny.config.to_dict(), "vocab_size": size + 1})
    with pytest.raises(UnsupportedModelError, match="tokens and the embedding"):
        tokenizers.gguf_entries(tiny_config, None, path)
