"""Evaluation text: what perplexity and KL are measured on, kept apart from the calibration text.

The protocol of every published figure: text as it is, documents joined with a blank line,
tokenized once, split without overlap into 512-token sequences, the model's own BOS rule for each;
32 sequences spread evenly through the text unless asked otherwise. The guard goes over all
sequences of the text first; a leaked one is replaced by its nearest neighbour that is not.

>>> evaluation_text("wiki.valid.txt", tokenizer, sequences=32).ids.shape   # doctest: +SKIP
torch.Size([32, 512])
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from clp_edge.data.calibration import Calibration
from clp_edge.data.documents import Documents, read_documents
from clp_edge.data.guard import leaked
from clp_edge.data.packing import pack_with_spans, spread
from clp_edge.errors import ClpEdgeError, UsageError

SEQUENCE_LENGTH = 512
REFUSED_SHARE = 0.05
"""More leaked sequences than this share, and the text is refused."""


@dataclass(frozen=True)
class EvaluationText:
    """Sequences (sequences, length) int64 to measure on, and where they come from."""

    ids: Tensor
    origin: str
    sha256: str
    tokens: int
    """All ids measured on, the BOS of each sequence included."""
    removed_as_leaked: int
    """Sequences of the whole text that share text with the calibration text."""


def evaluation_text(
    text: str | Path | Documents,
    tokenizer: Any,
    *,
    sequences: int | Literal["all"] = 32,
    length: int = SEQUENCE_LENGTH,
    against: Calibration | None = None,
) -> EvaluationText:
    """Sequences by the protocol; all there are where the text has fewer than asked for.

    Raises ClpEdgeError for a text shorter than one sequence, for the same text as `against`, and
    where more than 5 % of the sequences are leaked.
    """
    if sequences != "all" and sequences < 1:
        raise UsageError(f"cannot evaluate on {sequences} sequences", "use a number above 0 or all")
    documents = text if isinstance(text, Documents) else read_documents(str(text), cut=False)
    if against is not None and documents.sha256 == against.sha256:
        raise ClpEdgeError(
            f"{documents.origin} is the calibration text itself", "evaluate on other text"
        )
    packed = pack_with_spans(documents.texts, tokenizer, length)
    total = len(packed.ids)
    if total == 0:
        raise ClpEdgeError(
            f"{documents.origin} is too short to evaluate on: {packed.tokens:,} tokens found, "
            f"{length:,} needed",
            "give more text",
        )
    flags = [False] * total
    if against is not None:
        flags = leaked([packed.text_of(i) for i in range(total)], against.texts)
    removed = sum(flags)
    if removed > REFUSED_SHARE * total:
        raise ClpEdgeError(
            f"{removed} of the {total} sequences of {documents.origin} share text with the "
            f"calibration text ({against.origin if against else ''})",
            "evaluate on other text",
        )
    wanted = total if sequences == "all" else sequences
    ids = packed.ids[_pick(flags, wanted)].contiguous()
    return EvaluationText(ids, documents.origin, documents.sha256, ids.numel(), removed)


def held_back(calibration: Calibration) -> EvaluationText:
    """The report part of the calibration text, for when there is no evaluation text.

    Its sequences pass the guard against the other two parts too; those that fail are left out and
    counted, and it is a ClpEdgeError when none is left.
    """
    flags = leaked(calibration.report_sequences, calibration.fit_texts + calibration.select_texts)
    kept = [i for i, flag in enumerate(flags) if not flag]
    if not kept:
        raise ClpEdgeError(
            f"every held-back sequence of {calibration.origin} repeats text that was used to "
            "calibrate",
            "give an evaluation text, or calibration text that repeats itself less",
        )
    ids = calibration.report[kept].contiguous()
    return EvaluationText(
        ids,
        f"held back from: {calibration.origin}",
        calibration.sha256,
        ids.numel(),
        len(flags) - len(kept),
    )


def _pick(flags: list[bool], wanted: int) -> list[int]:
    """Indices spread evenly; a leaked one gives way to the nearest one free and not leaked."""
    free = {i for i, flag in enumerate(flags) if not flag}
    picked = []
    for index in spread(len(flags), wanted):
        if not free:
            break
        # distance 0 is the index itself; of two neighbours the earlier one wins
        near = min(free, key=lambda i: (abs(i - index), i)) if index not in free else index
        free.discard(near)
        picked.append(near)
    return sorted(picked)
