"""Calibration text: what search and healing learn from, split by document into three parts.

fit 80 % (search, refit, tuning), select 10 % (lambda, which state is kept, accept or reject) and
report 10 % (never looked at before the report). A document is in one part only, so that no part has
seen the beginning of another's sentence; and what is held back shares no passage with any other
document, see `repeats.py`.

>>> groups = split_documents(documents_from_texts("abcdefghij", "letters"), seed=0)
>>> [len(group) for group in groups]
[8, 1, 1]
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from clp_edge.data.documents import DOCUMENT_CHARACTERS, Documents, cut_text, documents_from_texts
from clp_edge.data.guard import repeated
from clp_edge.data.packing import Packed, pack_with_spans, spread
from clp_edge.data.repeats import Repeats, distinct
from clp_edge.errors import ClpEdgeError, UsageError

__all__ = ["Calibration", "calibrate", "documents_from_texts", "split_documents"]

SHARES = (0.8, 0.1, 0.1)  # fit, select, report
FEW_DOCUMENTS = 40  # fewer than this are cut smaller, so that a tenth of them means something
LEAST_HELD = 0.5
"""With less than this share of the held-back sequences text that repeats itself is refused."""
CHARACTERS_PER_TOKEN = 24
"""Text beyond this many characters for each token wanted is thinned out before tokenizing."""


@dataclass(frozen=True)
class Calibration:
    """Token sequences (sequences, length) int64 of the three parts, and the text behind them."""

    fit: Tensor
    select: Tensor
    report: Tensor
    origin: str
    sha256: str
    fit_texts: tuple[str, ...]
    """The documents of the fit part, whole, for the guard; so for the other parts."""
    select_texts: tuple[str, ...]
    report_texts: tuple[str, ...]
    report_sequences: tuple[str, ...]
    """The text behind each row of `report`."""
    repeats: Repeats = field(default_factory=Repeats)
    """How much of the text was dropped, or not held back, because it repeats itself."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All calibration text, for the guard."""
        return self.fit_texts + self.select_texts + self.report_texts

    @property
    def sequences(self) -> int:
        """How many sequences there are in all."""
        return len(self.fit) + len(self.select) + len(self.report)

    @property
    def length(self) -> int:
        """Tokens in each sequence."""
        return int(self.fit.shape[1])


def split_documents(
    documents: Documents, seed: int, *, kept_in_fit: Sequence[bool] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(fit, select, report): 80/10/10 of the characters, by document, the same for the same seed.

    The texts keep their order within a group; each group has one where there are three. Those that
    `kept_in_fit` marks are in fit, and the shares hold for all as far as the others suffice.
    """
    texts = documents.texts
    bound = kept_in_fit or [False] * len(texts)
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda index: not bound[index])
    total = max(1, documents.characters)
    groups: tuple[list[int], ...] = ([], [], [])
    wanting = [share * total for share in SHARES]
    for index in order:
        group = 0 if bound[index] else max(range(3), key=lambda g: round(wanting[g], 6))
        groups[group].append(index)
        wanting[group] -= len(texts[index])
    for group in range(3):
        fullest = max(groups, key=len)
        free = [index for index in fullest if not bound[index]]
        if not groups[group] and len(fullest) > 1 and free:
            smallest = min(free, key=lambda i: (len(texts[i]), i))
            fullest.remove(smallest)
            groups[group].append(smallest)
    fit, select, report = (tuple(texts[i] for i in sorted(group)) for group in groups)
    return fit, select, report


def part_sizes(sequences: int) -> tuple[int, int, int]:
    """How many of `sequences` go to (fit, select, report); each gets at least one."""
    tenth = max(1, round(SHARES[1] * sequences))
    return sequences - 2 * tenth, tenth, tenth


def calibrate(
    documents: Documents, tokenizer: Any, *, sequences: int, length: int, seed: int
) -> Calibration:
    """Take `sequences` sequences of `length` tokens, spread evenly through the text.

    Up to a tenth fewer are taken where the text is just too short; less text than that is a
    ClpEdgeError that says how many tokens were found and how many are needed. So is text that
    repeats itself so much that less than half of what is to be held back can be.
    """
    if sequences < 3:
        raise UsageError(f"{sequences} calibration sequences cannot be split", "use at least 3")
    texts, copies = distinct(documents.texts)
    whole = _fitting(replace(documents, texts=texts), sequences * length)
    repeating = repeated(whole.texts)
    repeats = Repeats(copies, sum(repeating), len(repeating))
    groups = split_documents(whole, seed, kept_in_fit=repeating)
    packed = [pack_with_spans(group, tokenizer, length) for group in groups]
    wanted = part_sizes(sequences)
    chosen = [spread(len(p.ids), size) for p, size in zip(packed, wanted, strict=True)]
    few = any(len(c) < LEAST_HELD * size for c, size in zip(chosen[1:], wanted[1:], strict=True))
    if repeats.near and few:
        repeats.refuse(documents.origin)
    if not all(chosen) or sum(map(len, chosen)) < 0.9 * sequences:
        _raise_too_short(documents, packed, sequences, length, copies)
    fit, select, report = (p.ids[c].contiguous() for p, c in zip(packed, chosen, strict=True))
    return Calibration(
        fit=fit,
        select=select,
        report=report,
        origin=documents.origin,
        sha256=documents.sha256,
        fit_texts=groups[0],
        select_texts=groups[1],
        report_texts=groups[2],
        report_sequences=tuple(packed[2].text_of(i) for i in chosen[2]),
        repeats=repeats,
    )


def split_sequences(
    ids: Tensor, texts: list[str], *, origin: str, sha256: str, seed: int
) -> Calibration:
    """A Calibration of ids (sequences, length) and their texts, each row a document of its own.

    A row that shares text with another is not held back, one that does not is in its place; a
    ClpEdgeError where too few do not.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(ids), generator=generator).tolist()
    fit, select, _ = part_sizes(len(ids))
    repeating = repeated(texts)
    repeats = Repeats(0, sum(repeating), len(repeating))
    held = order[fit:]
    spare = [index for index in order[:fit] if not repeating[index]]
    for place, index in enumerate(held):
        if repeating[index] and spare:
            held[place] = spare.pop()
    if any(repeating[index] for index in held):
        repeats.refuse(origin)
    parts = [
        sorted(set(order) - set(held)),
        sorted(held[:select]),
        sorted(held[select:]),
    ]
    own = [tuple(texts[i] for i in part) for part in parts]
    return Calibration(
        fit=ids[parts[0]],
        select=ids[parts[1]],
        report=ids[parts[2]],
        origin=origin,
        sha256=sha256,
        fit_texts=own[0],
        select_texts=own[1],
        report_texts=own[2],
        report_sequences=own[2],
        repeats=repeats,
    )


def _fitting(documents: Documents, tokens: int) -> Documents:
    """Enough documents for an 80/10/10 split, and not far more text than is needed."""
    texts = documents.texts
    if len(texts) < FEW_DOCUMENTS:
        size = max(200, min(DOCUMENT_CHARACTERS, documents.characters // FEW_DOCUMENTS))
        texts = tuple(piece for text in texts for piece in cut_text(text, size))
    total = sum(map(len, texts))
    budget = CHARACTERS_PER_TOKEN * tokens
    if total > budget:
        keep = max(FEW_DOCUMENTS, math.ceil(len(texts) * budget / total))
        texts = tuple(texts[i] for i in spread(len(texts), keep))
    return Documents(texts, documents.origin, documents.sha256)


def _raise_too_short(
    documents: Documents, packed: list[Packed], sequences: int, length: int, copies: int
) -> None:
    found = sum(p.tokens for p in packed)
    needed = sequences * length
    if found < needed:
        without = f" without {copies:,} exact copies of documents" if copies else ""
        raise ClpEdgeError(
            f"{documents.origin} is too short: {found:,} tokens found{without}, {needed:,} needed "
            f"({sequences} sequences of {length})",
            "give more text, or fewer or shorter sequences",
        )
    raise ClpEdgeError(
        f"{documents.origin} has {found:,} tokens in {len(documents.texts)} documents, too few to "
        f"split into three parts for {sequences} sequences of {length}",
        "give more text, or fewer or shorter sequences",
    )
