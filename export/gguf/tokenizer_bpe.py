"""Byte-level BPE (llama.cpp's "gpt2"): recognised by its steps, which name a pre-tokenizer.

llama.cpp takes a piece that is a token as it stands, or merges it, by the same name. Where a
tokenizer says the other of the two, it does not matter if merging alone rebuilds every token.
"""

from __future__ import annotations

from typing import Any

from gguf import GGUFValueType
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from clp_edge.export.gguf.tokenizer_parts import Entry, check_bpe, flat, merges_of, refuse, said
from clp_edge.gguf_file import pretokenizers


def _step(part: dict[str, Any]) -> str:
    """A pre-tokenizer step in the words of the table."""
    kind = part["type"]
    if kind == "Digits" and part.get("individual_digits"):
        return pretokenizers.DIGITS
    if kind == "ByteLevel":
        if part.get("add_prefix_space"):
            raise refuse("it puts a space before the text (ByteLevel add_prefix_space)")
        return pretokenizers.GPT2 if part.get("use_regex", True) else pretokenizers.BYTES
    # (Removed, invert) keeps the matches and drops the rest; the table's patterns leave no rest
    how = (part.get("behavior"), bool(part.get("invert")))
    if kind == "Split" and how in (("Isolated", False), ("Removed", True)):
        pattern = part["pattern"].get("Regex")
        if pattern is not None:
            return pretokenizers.split(pattern)
    raise refuse(f"unknown pre-tokenizer step {said(part)}")


def recognise(whole: dict[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer; UnsupportedModelError names the unknown part."""
    model = whole["model"]
    check_bpe(model)
    for part in flat(whole["normalizer"], "normalizers"):
        if part["type"] != "NFC":
            raise refuse(f"unknown normalizer {said(part)}")
    steps = tuple(_step(part) for part in flat(whole["pre_tokenizer"], "pretokenizers"))
    ignores = bool(model.get("ignore_merges"))
    row = pretokenizers.find(steps, ignore_merges=ignores)
    if row is None:
        row = next(pretokenizers.candidates(steps), None)
        if row is None:
            raise refuse(f"unknown pre-tokenizer: {' + '.join(steps) or 'none'}")
        lost = _unmerged(whole)
        if lost:
            raise refuse(
                f"it says ignore_merges {ignores}, llama.cpp's {row.name} does not, and merging "
                f"alone does not make {lost[0]!r} (of {len(lost)})"
            )
    return row.name


def _unmerged(whole: dict[str, Any]) -> list[str]:
    """The tokens that the merges alone do not make."""
    vocabulary = whole["model"]["vocab"]
    added = {token["content"] for token in whole["added_tokens"]}
    plain = Tokenizer(BPE(vocab=vocabulary, merges=merges_of(whole["model"])))
    texts = [token for token in vocabulary if token not in added]
    made = plain.encode_batch(texts, add_special_tokens=False)
    return [text for text, found in zip(texts, made, strict=True) if len(found.ids) != 1]


def notes(whole: dict[str, Any]) -> list[str]:
    """What llama.cpp does not do of this tokenizer, in plain words."""
    found = []
    if flat(whole["normalizer"], "normalizers"):
        found.append("llama.cpp does not normalize text (NFC): decomposed accents get other tokens")
    row = pretokenizers.named(recognise(whole))
    if row is not None and row.cuts_marks:
        found.append(
            "llama.cpp cuts words at combining marks: text in scripts such as Devanagari or Tamil "
            "gets other tokens"
        )
    missing = [c for c in ByteLevel.alphabet() if c not in whole["model"]["vocab"]]
    if missing:
        found.append(f"{len(missing)} of the 256 bytes have no token and are dropped")
    return found


def entries(whole: dict[str, Any]) -> list[Entry]:
    """The keys that say how text becomes tokens."""
    string = GGUFValueType.STRING
    merges = [" ".join(merge) for merge in merges_of(whole["model"])]
    return [
        Entry("tokenizer.ggml.model", "gpt2", string),
        Entry("tokenizer.ggml.pre", recognise(whole), string),
        Entry("tokenizer.ggml.merges", merges, GGUFValueType.ARRAY, string),
        Entry("tokenizer.ggml.add_space_prefix", False, GGUFValueType.BOOL),
    ]
