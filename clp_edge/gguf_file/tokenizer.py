"""The tokenizer of a GGUF file as a clean fast tokenizer of transformers, with llama.cpp's ids.

transformers' own reading is wrong for both kinds: byte-level BPE always gets GPT-2's pre-tokenizer
(so the digits of `pre = smollm` come out wrong), and SentencePiece loses leading spaces in version
5. So the tokenizer is built here from the file's tokens, merges, scores and types. What a
`tokenizer.ggml.pre` name means is in `pretokenizers.py`, the exporter's own table.

>>> from clp_edge.gguf_file.header import read_header
>>> gguf_tokenizer(read_header(path)).tokenize("a1b22")                     # doctest: +SKIP
['a', '1', 'b', '2', '2']
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from clp_edge.errors import ClpEdgeError, UnsupportedModelError
from clp_edge.gguf_file.header import GgufHeader
from clp_edge.gguf_file.pretokenizers import PreTokenizer, built, named, names

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
SPACE = "\u2581"  # how SentencePiece writes a space


def gguf_tokenizer(header: GgufHeader) -> PreTrainedTokenizerFast:
    """The file's tokenizer as a clean fast tokenizer, whose ids are those of llama.cpp."""
    kind = header.value("tokenizer.ggml.model")
    if kind == "gpt2":
        pre, backend = _byte_level_bpe(header)
        adds_bos = bool(header.value("tokenizer.ggml.add_bos_token", pre.add_bos))
    elif kind == "llama":
        backend = _sentencepiece_bpe(header)
        adds_bos = bool(header.value("tokenizer.ggml.add_bos_token", True))
    else:
        raise UnsupportedModelError(
            f"{header.path.name} has a tokenizer of the kind {kind!r}; 'gpt2' (byte-level BPE) "
            "and 'llama' (SentencePiece) are known",
            "give the model's Hugging Face folder instead",
        )
    special = _special_names(header)
    bos = special.get("bos_token")
    if adds_bos and bos is not None:
        backend.post_processor = TemplateProcessing(
            single=[bos, "$A"],
            pair=[bos, "$A", bos, "$B:1"],
            special_tokens=[(bos, header.value("tokenizer.ggml.bos_token_id"))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=int(header.own("context_length", 1 << 30)),
        **special,
    )
    tokenizer.chat_template = header.value("tokenizer.chat_template")
    return tokenizer


def _byte_level_bpe(header: GgufHeader) -> tuple[PreTokenizer, Tokenizer]:
    name = header.value("tokenizer.ggml.pre", "default")
    pre = named(name)
    if pre is None:
        raise UnsupportedModelError(
            f"the pre-tokenizer {name!r} of {header.path.name} is not known "
            f"({', '.join(names())} are)",
            "give the model's Hugging Face folder instead",
        )
    tokens = header.value("tokenizer.ggml.tokens", [])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UnsupportedModelError(
            f"the vocabulary of {header.path.name} names {len(tokens) - len(vocabulary)} tokens "
            "twice",
            "give the model's Hugging Face folder instead",
        )
    merges = []
    for merge in header.value("tokenizer.ggml.merges", []):
        cut = merge.index(" ", 1)
        merges.append((merge[:cut], merge[cut + 1 :]))
    try:
        model = BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.ignore_merges)
    except Exception as error:  # `tokenizers` raises bare Exception for a merge out of vocabulary
        raise ClpEdgeError(
            f"the merges of {header.path.name} do not fit its vocabulary ({error})",
            "download the file again",
        ) from error
    backend = Tokenizer(model)
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = built(pre)
    backend.decoder = decoders.ByteLevel()
    _add_special_tokens(backend, header, tokens)
    return pre, backend


def _sentencepiece_bpe(header: GgufHeader) -> Tokenizer:
    """SentencePiece's BPE: the best-scored token that two neighbours form is merged first."""
    tokens = header.value("tokenizer.ggml.tokens", [])
    scores = header.value("tokenizer.ggml.scores", [])
    kinds = header.value("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not len(tokens) == len(scores) == len(kinds):
        raise ClpEdgeError(
            f"{header.path.name} has {len(tokens)} tokens, {len(scores)} scores and {len(kinds)} "
            "token types",
            "download the file again",
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ranked = []
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        if kind not in (NORMAL, UNUSED, USER_DEFINED):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-score, vocabulary[left], vocabulary[right], left, right))
    ranked.sort()
    special = _special_names(header)
    backend = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=[(left, right) for *_, left, right in ranked],
            unk_token=special.get("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # a space before every stretch of text, also after a special token, as llama.cpp has it
    prefix = bool(header.value("tokenizer.ggml.add_space_prefix", True))
    rules: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*rules, normalizers.Replace(" ", SPACE)])
    back: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        back.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(back)
    _add_special_tokens(backend, header, tokens)
    return backend


def _add_special_tokens(backend: Tokenizer, header: GgufHeader, tokens: list[str]) -> None:
    """Control and user-defined tokens are found in the text before it is cut, as llama.cpp does."""
    kinds = header.value("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    added = [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token
    ]
    # in one call, so that ids keep their order; the flag of each token says what it is
    backend.add_tokens(added)


def _special_names(header: GgufHeader) -> dict[str, str]:
    tokens = header.value("tokenizer.ggml.tokens", [])
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = header.value(f"tokenizer.ggml.{key}_token_id")
        if index is not None and 0 <= index < len(tokens):
            found[f"{name}_token"] = tokens[index]
    return found
