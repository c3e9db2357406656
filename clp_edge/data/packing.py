"""From text to sequences of equal length, with the model's own BOS rule.

Documents are joined by a blank line, tokenized once, and split without overlap; the remainder is
dropped. A BOS stands in front of every sequence exactly when the tokenizer puts one in front of a
text: leaving it out, or adding one the model was not trained with, ruins perplexity (PITFALLS 5).

>>> pack(["one document", "another"], tokenizer, length=4).shape           # doctest: +SKIP
torch.Size([2, 4])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

JOINER = "\n\n"


def follows_bos(tokenizer: Any) -> int | None:
    """The model's own BOS rule: the id that `tokenizer(text)` puts in front, else None."""
    with_rule = list(tokenizer("a")["input_ids"])
    without = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    if len(with_rule) > len(without) and with_rule[: len(without)] != without:
        return int(with_rule[0])
    return None


@dataclass(frozen=True)
class Packed:
    """Sequences (sequences, length) int64 and the span of text, [start, end), behind each."""

    ids: Tensor
    text: str
    spans: tuple[tuple[int, int], ...]
    tokens: int
    """All tokens of the text, the dropped remainder included, BOS not."""

    def text_of(self, index: int) -> str:
        """The text that sequence `index` was made from."""
        start, end = self.spans[index]
        return self.text[start:end]


def pack(texts: Sequence[str], tokenizer: Any, length: int) -> Tensor:
    """(sequences, length) int64: the texts joined, tokenized once, split without overlap."""
    return pack_with_spans(texts, tokenizer, length).ids


def pack_with_spans(texts: Sequence[str], tokenizer: Any, length: int) -> Packed:
    """As `pack`, with the text behind each sequence."""
    bos = follows_bos(tokenizer)
    payload = length - (bos is not None)
    if payload < 1:
        raise ValueError(f"sequences of {length} tokens leave no room for text")
    text = JOINER.join(texts)
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    flat = torch.tensor(encoded["input_ids"], dtype=torch.int64)
    count = len(flat) // payload
    ids = flat[: count * payload].view(count, payload)
    if bos is not None:
        ids = torch.cat([torch.full((count, 1), bos, dtype=torch.int64), ids], dim=1)
    if fast:
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        used = offsets[: count * payload].reshape(count, payload, 2)
        starts, ends = used[:, 0, 0], used[:, -1, 1]
    else:  # no offsets: every sequence gets its share of the characters, widened by a tenth
        edges = np.linspace(0, len(text) * count * payload / max(1, len(flat)), count + 1)
        margin = int(0.1 * len(text) / max(1, count))
        starts = np.maximum(0, edges[:-1].astype(np.int64) - margin)
        ends = np.minimum(len(text), edges[1:].astype(np.int64) + margin)
    spans = tuple((int(a), int(b)) for a, b in zip(starts, ends, strict=True))
    return Packed(ids, text, spans, len(flat))


def spread(available: int, wanted: int) -> list[int]:
    """`wanted` indices out of range(available), evenly spaced from the middle of equal parts."""
    if wanted >= available:
        return list(range(available))
    return [int((i + 0.5) * available / wanted) for i in range(wanted)]
