"""What the quality gate said of the files that ship, and every cut that was tried for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from clp_edge.records.learning import Span, WindowRecord


@dataclass(frozen=True)
class GateVerdictRecord:
    """The limits that were asked for, None where there is none, and what each file misses."""

    max_ppl_ratio: float | None
    max_kl: float | None
    min_retention: float | None
    misses: dict[str, tuple[str, ...]]
    """shipped file -> what it does not reach, a sentence each; empty: it passes"""

    @property
    def passed(self) -> bool:
        """Every file that was judged passes, and there is one."""
        return bool(self.misses) and not any(self.misses.values())


@dataclass(frozen=True)
class PredictedCut:
    """The best cut of so many blocks on calibration text, in KL to the dense model (nats)."""

    count: int
    first: int
    last: int
    kl_cut: float
    kl_mended: float
    """after the closed-form refit, on held-back text; the cut's own where it cannot be refitted"""


@dataclass(frozen=True)
class PredictionRecord:
    """The curve that `--prune auto` predicts from."""

    cuts: tuple[PredictedCut, ...]
    """by count; those between are interpolated"""
    alone: tuple[WindowRecord, ...]
    """the KL of each block that may go, dropped alone"""
    seconds: float


@dataclass(frozen=True)
class TryRecord:
    """One cut that was made, healed, written and measured on the file that would ship.

    Shares are of what the limits allow: above 1 a limit is missed, of several the worst counts.
    """

    count: int
    blocks: Span
    predicted: float
    """share that was predicted before the try, the tries before it counted in"""
    measured: float | None
    """share of the worst file; None: it has no number (10 counts in its place)"""
    ppl_ratio: float | None
    """this and the next two of the worst file"""
    kl: float | None
    retention: float | None
    passed: bool
    misses: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class TriesRecord:
    """How `--prune auto` came to its cut."""

    allowed_kl: float
    """nats that the limits allow, by which the curve becomes shares"""
    prediction: PredictionRecord
    tries: tuple[TryRecord, ...] = ()
    chosen: int | None = None
    """blocks that go in the end; None: not settled yet"""
    note: str = ""
    """why it ended there"""
    shares: dict[str, float] = field(default_factory=dict)
    """count -> what the curve predicts for it, before any try"""
