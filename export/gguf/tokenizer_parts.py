"""What both kinds of tokenizer share: the definition in tokenizer.json, keys, and the refusal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType

from clp_edge.errors import UnsupportedModelError


@dataclass(frozen=True)
class Entry:
    """One GGUF key with its value and types."""

    key: str
    value: Any
    kind: GGUFValueType
    sub_kind: GGUFValueType | None = None


def refuse(what: str) -> UnsupportedModelError:
    """The error for a tokenizer that GGUF cannot express; `what` names the part."""
    return UnsupportedModelError(
        f"the tokenizer cannot be written to GGUF: {what}",
        "known are byte-level BPE (GPT-2, SmolLM, Llama 3, Qwen, Tekken, GPT-4o) and SentencePiece "
        "BPE (Llama 2, Gemma)",
    )


def definition(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer.json of a fast tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise refuse(f"{type(tokenizer).__name__} is no fast tokenizer")
    return json.loads(backend.to_str())


def flat(part: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences opened."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[inside] for step in flat(inner, inside)]
    return [part]


def said(part: dict[str, Any]) -> str:
    """A part in the words of its file, shortened."""
    return json.dumps(part, ensure_ascii=False)[:160]


def merges_of(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE model; older files join the two parts with a space."""
    found = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        found.append((left, right))
    return found


def check_bpe(model: dict[str, Any]) -> None:
    """Refuse what neither kind of tokenizer in llama.cpp does."""
    if model["type"] != "BPE":
        raise refuse(f"its model is {model['type']}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise refuse(f"its BPE model sets {name}")
