"""SentencePiece's BPE (llama.cpp's "llama"): byte tokens, and scores made from the merges.

llama.cpp joins the two neighbours whose union is the token with the highest score; a tokenizer.json
joins the pair with the lowest rank. Both are the same when the merges are those of a SentencePiece
vocabulary: every way to cut a token into two tokens is a merge, and the merges of a better token
all come first. Then the score of a token is minus its place in the order of the merges, which for
Llama 2 is its SentencePiece score. Other merges are refused.

The space before the text: SentencePiece puts one before every stretch of text, whatever the text
begins with, and so does llama.cpp. `Metaspace` - which transformers 5 puts in the place of a Llama
2 file's own normalizer - leaves it out before a text that begins with a space, and with the scheme
"first" after special tokens too. Such a tokenizer is written by SentencePiece's rule, and
`as_written` is the tokenizer that the file is compared with; `notes` says so.
"""

from __future__ import annotations

import copy
from typing import Any

from gguf import GGUFValueType, TokenType
from tokenizers import normalizers

from clp_edge.export.gguf.tokenizer_parts import Entry, check_bpe, flat, merges_of, refuse, said

SPACE = "\u2581"
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
_BYTE_NAMES = frozenset(BYTES)
UNMERGED = -1e6
"""Below every score: a token that no merge makes."""

_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}


def is_sentencepiece(whole: dict[str, Any]) -> bool:
    """Whether unknown characters become byte tokens: the mark of the kind."""
    return bool(whole["model"].get("byte_fallback"))


def recognise(whole: dict[str, Any]) -> bool:
    """Whether a space is put before the text; UnsupportedModelError names the unknown part."""
    model = whole["model"]
    check_bpe(model)
    if model.get("ignore_merges"):
        raise refuse("its SentencePiece model sets ignore_merges")
    vocabulary = model["vocab"]
    # an ASCII character that is a token stands for its byte: Gemma has a tab and no <0x09>
    missing = [
        name
        for byte, name in enumerate(BYTES)
        if name not in vocabulary and not (byte < 128 and chr(byte) in vocabulary)
    ]
    if missing:  # llama.cpp would abort at the first such byte
        raise refuse(f"{len(missing)} of the 256 byte tokens are missing, such as {missing[0]}")
    rules = flat(whole["normalizer"], "normalizers")
    steps = flat(whole["pre_tokenizer"], "pretokenizers")
    if rules in ([_PREPEND, _REPLACE], [_REPLACE]):
        # Gemma cuts at spaces, of which its normalizer leaves none
        odd = [step for step in steps if step["type"] != "Split" or _pattern(step) != " "]
        if odd:
            raise refuse(f"unknown pre-tokenizer step {said(odd[0])}")
        return len(rules) == 2
    if not rules and len(steps) == 1 and steps[0]["type"] == "Metaspace":
        step = steps[0]
        if step.get("replacement") != SPACE:
            raise refuse(f"unknown pre-tokenizer step {said(step)}")
        if step.get("split", True):
            raise refuse(f"it cuts the text at spaces before it merges: {said(step)}")
        return step.get("prepend_scheme", "always") != "never"
    raise refuse(
        f"unknown SentencePiece rules: normalizer {said(rules[0]) if rules else 'none'}, "
        f"pre-tokenizer {said(steps[0]) if steps else 'none'}"
    )


def _pattern(step: dict[str, Any]) -> str | None:
    return step["pattern"].get("String")


def _scheme(whole: dict[str, Any]) -> str | None:
    steps = flat(whole["pre_tokenizer"], "pretokenizers")
    return next((s.get("prepend_scheme") for s in steps if s["type"] == "Metaspace"), None)


def notes(whole: dict[str, Any]) -> list[str]:
    """What llama.cpp does differently, in plain words."""
    scheme = _scheme(whole)
    if scheme == "always":
        return [
            "llama.cpp puts a space before a text that begins with one, as SentencePiece does; "
            "this tokenizer does not"
        ]
    if scheme == "first":
        return [
            "llama.cpp puts a space before the text after each special token and before a text "
            "that begins with one, as SentencePiece does; this tokenizer does not"
        ]
    return []


def as_written(tokenizer: Any, whole: dict[str, Any]) -> Any:
    """The tokenizer with SentencePiece's rule for the space before the text."""
    if _scheme(whole) not in ("always", "first"):
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    backend = changed.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    backend.pre_tokenizer = None
    return changed


def scores(whole: dict[str, Any]) -> dict[str, float]:
    """The score of each token that a merge makes; refuses merges that scores cannot express."""
    vocabulary = whole["model"]["vocab"]
    added = {token["content"] for token in whole["added_tokens"]}
    merges = merges_of(whole["model"])
    places: dict[str, int] = {}
    last = -1
    for left, right in merges:
        place = places.setdefault(left + right, len(places))
        # added tokens are found before anything is merged, so their rank is free
        if place < last and left + right not in added:
            raise refuse(f"no score keeps its merges in order (at {left!r} and {right!r})")
        last = max(last, place)
    pairs = set(merges)
    for token in vocabulary:
        if token in added:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary and (left, right) not in pairs:
                raise refuse(
                    f"llama.cpp would join {left!r} and {right!r}, which no merge of it does "
                    "(its merges are not those of a SentencePiece vocabulary)"
                )
    return {token: -float(place) for token, place in places.items()}


def entries(whole: dict[str, Any], tokens: list[str]) -> list[Entry]:
    """The keys that say how text becomes tokens; `tokens` are all rows of the embedding."""
    prefix = recognise(whole)
    known = scores(whole)
    array = GGUFValueType.ARRAY
    values = [known.get(token, UNMERGED if len(token) > 1 else 0.0) for token in tokens]
    return [
        Entry("tokenizer.ggml.model", "llama", GGUFValueType.STRING),
        Entry("tokenizer.ggml.pre", "default", GGUFValueType.STRING),
        Entry("tokenizer.ggml.scores", values, array, GGUFValueType.FLOAT32),
        Entry("tokenizer.ggml.add_space_prefix", prefix, GGUFValueType.BOOL),
    ]


def kind_of(token: str, kind: int, unknown: str | None) -> int:
    """The type of a token of the vocabulary where it is one of SentencePiece's own."""
    if token in _BYTE_NAMES and kind == TokenType.NORMAL:
        return int(TokenType.BYTE)
    if token == unknown:
        return int(TokenType.UNKNOWN)
    return kind
