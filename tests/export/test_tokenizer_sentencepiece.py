"""SentencePiece BPE tokenizers: scores from merges, byte tokens, spaces, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from clp_edge.errors import UnsupportedModelError
from clp_edge.export.gguf import tokenizer as tokenizers
from clp_edge.export.reference_text import HARD_TEXTS, TEXT
from clp_edge.gguf_file.header import read_header
from clp_edge.gguf_file.tokenizer import gguf_tokenizer
from tests.export.vocabulary import llama_cpp_ids, write_vocabulary

SPACE = "\u2581"
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
RUNS = [" " * 9 + "x", "x" + " " * 17, "\n" * 7, "\t\t\t", "aaaaaaaaaaa", "ababababa", "----=----"]


def pieces() -> tuple[list[str], list[str]]:
    """(single characters, tokens in the order in which they were merged) of hard texts."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False)
    text = [*HARD_TEXTS[:-1], *(TEXT[i : i + 60] for i in range(0, len(TEXT), 60)), *RUNS]
    backend.train_from_iterator(text, trainer)
    vocabulary = backend.get_vocab()
    order = sorted(vocabulary, key=lambda token: vocabulary[token])
    # the rarest characters go, so that byte tokens are used
    alone = [token for token in order if len(token) == 1 and ord(token) < 0x3000]
    kept = set(alone)
    return alone, [t for t in order if len(t) > 1 and set(t) <= kept]


def sentencepiece(
    *, kind: str = "llama2", spoilt: Any = None, user: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer of that kind; `spoilt` changes its merges."""
    alone, merged = pieces()
    vocabulary: dict[str, int] = {}
    for token in (*SPECIAL, *BYTES, *merged, *alone):
        vocabulary.setdefault(token, len(vocabulary))
    merges = [
        (token[:cut], token[cut:])
        for token in merged
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    if spoilt is not None:
        merges = spoilt(merges)
    backend = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", SPACE)
    if kind == "llama2":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
    elif kind == "gemma":
        backend.normalizer = replace
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme=kind.removeprefix("metaspace "), split=kind == "metaspace split"
        )
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in user])
    backend.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def entries_of(hf: Any, spare: int = 3) -> list[Any]:
    config = SimpleNamespace(vocab_size=len(hf) + spare, eos_token_id=2)
    return tokenizers.entries(config, hf)


def texts() -> list[tuple[str, bool]]:
    plain = [*HARD_TEXTS, *RUNS, "hi\n\n\n\nho\n\n<b>x", f"a {SPACE} b"]
    return [*((text, False) for text in plain), (HARD_TEXTS[0], True), ("a", True)]


@pytest.mark.llama
@pytest.mark.parametrize(
    ("kind", "user"),
    [
        ("llama2", ()),
        ("gemma", ("\n\n", "\n\n\n", "<b>")),
        ("metaspace always", ()),
        ("metaspace first", ()),
    ],
)
def test_pitfall_13_equal_ids_in_llama_cpp_and_when_read_back(tmp_path, kind, user):
    hf = sentencepiece(kind=kind, user=user)
    path = write_vocabulary(tmp_path / "t.gguf", entries_of(hf))
    theirs = llama_cpp_ids(path, texts())
    written = tokenizers.as_written(hf)
    back = gguf_tokenizer(read_header(path))
    used = {i for ids in theirs for i in ids}
    assert used & set(range(3, 259))  # byte tokens are among them
    assert len(used) > 250
    for (text, special), ids in zip(texts(), theirs, strict=True):
        assert written.encode(text, add_special_tokens=special) == ids, text
        assert back.encode(text, add_special_tokens=special) == ids, text


@pytest.mark.llama
def test_the_scores_matter(tmp_path):
    """With one score for all tokens, as without sentencepiece's own file, ids differ."""
    hf = sentencepiece()
    entries = entries_of(hf)
    at = next(i for i, e in enumerate(entries) if e.key.endswith("scores"))
    flat = [-1000.0] * len(entries[at].value)
    entries[at] = type(entries[at])(entries[at].key, flat, entries[at].kind, entries[at].sub_kind)
    path = write_vocabulary(tmp_path / "t.gguf", entries)
    theirs = llama_cpp_ids(path, texts())
    assert any(
        hf.encode(text, add_special_tokens=special) != ids
        for (text, special), ids in zip(texts(), theirs, strict=True)
    )


def test_types_scores_and_flags():
    hf = sentencepiece(kind="gemma", user=("<b>",))
    found = {e.key.removeprefix("tokenizer.ggml."): e.value for e in entries_of(hf)}
    kinds, tokens, scores = found["token_type"], found["tokens"], found["scores"]
    assert (found["model"], found["pre"]) == ("llama", "default")
    assert found["add_space_prefix"] is False
    assert found["add_bos_token"] is True
    assert found["add_eos_token"] is False
    assert kinds[:4] == [2, 3, 3, 6]  # unknown, control, control, byte
    assert kinds[tokens.index("<b>")] == 4  # user-defined
    assert kinds[-1] == 5  # unused
    assert kinds[tokens.index("e")] == 1  # normal
    assert (found["bos_token_id"], found["eos_token_id"], found["unknown_token_id"]) == (1, 2, 0)
    _, merged = pieces()
    assert [scores[tokens.index(token)] for token in merged[:3]] == [0.0, -1.0, -2.0]
    assert "merges" not in found


def test_the_space_before_a_text_is_written_and_said():
    found = {e.key: e.value for e in entries_of(sentencepiece())}
    assert found["tokenizer.ggml.add_space_prefix"] is True
    assert tokenizers.notes(sentencepiece()) == []
    (note,) = tokenizers.notes(sentencepiece(kind="metaspace always"))
    assert "before a text that begins with one" in note
    (note,) = tokenizers.notes(sentencepiece(kind="metaspace first"))
    assert "after each special token" in note


def test_a_space_metaspace_leaves_out_is_what_differs():
    hf = sentencepiece(kind="metaspace always")
    written = tokenizers.as_written(hf)
    text = "   three"
    assert hf.encode(text) != written.encode(text) == sentencepiece().encode(text)
    assert hf.encode("three") == written.encode("three")
    assert hf.encode(text) == sentencepiece(kind="metaspace always").encode(text)  # not changed


def one_less(merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    wide = next(m for m in merges if len(m[0]) > 1 and len(m[1]) > 1)
    return [merge for merge in merges if merge != wide]


def shuffled(merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The second way to make the first token of two ways comes last of all."""
    seen: set[str] = set()
    for at, (left, right) in enumerate(merges):
        if left + right in seen:
            return [*merges[:at], *merges[at + 1 :], merges[at]]
        seen.add(left + right)
    raise AssertionError("no token has two ways")


def lower_case(hf: Any) -> None:
    hf.backend_tokenizer.normalizer = normalizers.Lowercase()


def whitespace(hf: Any) -> None:
    hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()


def no_rules(hf: Any) -> None:
    hf.backend_tokenizer.normalizer = None


def underscore(hf: Any) -> None:
    no_rules(hf)
    hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="_", split=False)


def ignores(hf: Any) -> None:
    model = json.loads(hf.backend_tokenizer.to_str())["model"]
    hf.backend_tokenizer.model = BPE(
        vocab=model["vocab"],
        merges=[tuple(m) for m in model["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
        ignore_merges=True,
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lower_case, "Lowercase"),
        (whitespace, "Whitespace"),
        (no_rules, "normalizer none, pre-tokenizer none"),
        (underscore, "Metaspace"),
        (ignores, "ignore_merges"),
    ],
)
def test_unknown_rules_are_refused_by_name(change, named):
    hf = sentencepiece()
    change(hf)
    with pytest.raises(UnsupportedModelError, match=named):
        entries_of(hf)


def test_a_cut_at_spaces_is_refused():
    hf = sentencepiece(kind="metaspace always")
    hf.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    with pytest.raises(UnsupportedModelError, match="cuts the text at spaces"):
        entries_of(hf)


@pytest.mark.parametrize(
    ("spoilt", "named"),
    [(one_less, "llama.cpp would join"), (shuffled, "no score keeps its merges in order")],
)
def test_merges_that_scores_cannot_express_are_refused(spoilt, named):
    with pytest.raises(UnsupportedModelError, match=named):
        entries_of(sentencepiece(spoilt=spoilt))
