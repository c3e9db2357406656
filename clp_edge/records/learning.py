"""What the learning stages leave: calibrate, text, search, heal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class CalibrationRecord:
    """Calibration text; the token ids are beside it: fit, select, report (sequences, tokens)."""

    origin: str
    sha256: str
    sequences: dict[str, int]
    """how many in each part"""
    fit_texts: tuple[str, ...]
    """the documents of a part, whole, for the leak guard"""
    select_texts: tuple[str, ...]
    report_texts: tuple[str, ...]
    report_sequences: tuple[str, ...]
    """the text behind each row of the report part"""
    copies_dropped: int = 0
    """documents that were exact copies of earlier ones"""
    repeats_not_held_back: int = 0
    """documents that share long passages with others, so they are only fitted on"""


@dataclass(frozen=True)
class EvaluationRecord:
    """What everything is measured on; the ids (sequences, tokens) are beside it."""

    text: str
    sha256: str
    tokens: int
    sequence_length: int
    removed_as_leaked: int


@dataclass(frozen=True)
class Span:
    """A run of blocks, 0-based ids, both ends inclusive."""

    first: int
    last: int


@dataclass(frozen=True)
class WindowRecord:
    """One window that was judged."""

    first: int
    last: int
    kl_raw: float | None
    kl_healed: float | None
    kl_raw_se: float | None = None
    """over sequences"""
    kl_healed_se: float | None = None
    sequences: int | None = None
    """on how many it was judged, where these are not all: it left early"""


@dataclass(frozen=True)
class RivalRecord:
    """Another window that was the best in some resamples, and in what share of them."""

    first: int
    last: int
    wins: float


@dataclass(frozen=True)
class GateRecord:
    """The gate's own answer before the exact judge."""

    choice: Span
    candidates: tuple[Span, ...]
    paths: tuple[tuple[float, ...], ...]
    """the gate's position in blocks after every step, one path a start"""
    losses: tuple[tuple[float, ...], ...]
    """KL under the soft gate"""
    forward_equivalents: float


@dataclass(frozen=True)
class PairRecord:
    """The best two separate runs of as many blocks as the one that goes, by raw KL in nats."""

    segments: tuple[Span, Span]
    kl: float
    gap: float
    """KL of the pair less that of the best single run: below 0 where two are better"""
    gap_se: float | None
    """paired over sequences"""


@dataclass(frozen=True)
class SearchRecord:
    """Which blocks go, with the receipts."""

    method: str
    criterion: Literal["raw", "healed"] | None
    segments: tuple[Span, ...]
    dropped: tuple[int, ...]
    kl_raw: float | None
    kl_healed: float | None
    windows: tuple[WindowRecord, ...]
    regret: float | None
    stability: float | None
    """share of bootstrap resamples in which the same window wins; None from too few sequences"""
    forward_equivalents: float | None
    seconds: float
    segment: Span | None = None
    """the one that goes, where it is one"""
    reason: str = ""
    """why this method"""
    rivals: tuple[RivalRecord, ...] = ()
    gap: float | None = None
    """KL of the second best less KL of the best"""
    gap_se: float | None = None
    near_tie: bool = False
    gate: GateRecord | None = None
    tokens: int | None = None
    raw_choice: Span | None = None
    """what raw KL alone would have chosen, where the criterion is healed"""
    refit_tokens: int | None = None
    """how much text the windows were refitted on, where the criterion is healed"""
    notes: tuple[str, ...] = ()
    """why the criterion is not the one asked for, where it is not"""
    pair: PairRecord | None = None
    spilled: bool = False
    """whether the block states had to be laid into files"""


@dataclass(frozen=True)
class TuningRecord:
    """Held-back KL after so many tuning steps."""

    step: int
    kl: float


@dataclass(frozen=True)
class RungRecord:
    """One rung of the ladder: held-back KL before and after it, and whether it was kept."""

    name: str
    kl_before: float
    kl_after: float | None
    """None: it was no number"""
    kept: bool
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)
    """what there is to know besides; its keys depend on the rung"""
    recovered: float | None = None
    """the share of the nats lost by the cut that have come back after it"""
    change_se: float | None = None
    """standard error of kl_after - kl_before, paired by sequence"""
    ratio: float | None = None
    """perplexity over the dense model's on the held-back text, after it"""
    ratio_se: float | None = None
    """its standard error, paired by sequence"""


@dataclass(frozen=True)
class HealRecord:
    """How the cut was mended; the changed tensors are beside it. KL on held-back text."""

    method: str
    trained_blocks: tuple[int, ...]
    """ids of the dense model"""
    kl_cut: float | None
    kl_refit: float | None
    kl_tuned: float | None
    seconds: float
    ridge: float | None = None
    explained: float | None = None
    """R² of the refit on the fitted text"""
    history: tuple[TuningRecord, ...] = ()
    notes: tuple[str, ...] = ()
    """what was left out, and why"""
    parts: dict[str, float] = field(default_factory=dict)
    """seconds of collect, refit, graft, local, tune; and of one step on KL"""
    rungs: tuple[RungRecord, ...] = ()
    """those that were climbed, in order; one that does not apply to this cut is in `notes`"""
    precision: str = ""
    """the autocast that the model ran under while it was mended, and why"""
    ratio_cut: float | None = None
    """perplexity of the cut model over the dense one's on the held-back text"""
    ratio_cut_se: float | None = None
    held_sequences: int | None = None
    """of the held-back text that every rung was judged on"""
