"""What the quality gate said of the files that ship, and every cut that was tried for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clp_edge.records.learning import Span, WindowRecord
from clp_edge.records.making import ArtifactRecord

Met = Literal["met", "not met", "undecided", "not measured"]


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


@dataclass(frozen=True)
class GoalRecord:
    """What --max-bytes, --min-speedup or --min-tps asked for, foretold and measured.

    bytes; times the dense file's decode speed; tokens per second: of several files the worst one.
    """

    flag: str
    wanted: float
    predicted: float | None
    measured: float | None
    low: float | None
    """ends of the interval of what was measured; both the value itself where it is exact"""
    high: float | None
    file: str | None
    """which file that is"""
    met: Met
    """undecided: the interval holds what was asked for"""
    note: str = ""
    """what the prediction stands on"""


@dataclass(frozen=True)
class ChoiceRecord:
    """What --aim chose among the files that were measured."""

    aim: str
    chosen: str | None
    """name of the artifact; None: none passes"""
    cut: bool
    """whether that is a file of the cut model; a dense file means: no cut"""
    bar: str
    """the quality that a file had to reach"""
    why: str
    passed: tuple[str, ...]
    """best in the aim first"""
    failed: dict[str, tuple[str, ...]]
    """file -> what it does not reach"""


@dataclass(frozen=True)
class FrontierRecord:
    """Dense and cut model at several types, side by side."""

    artifacts: tuple[ArtifactRecord, ...]
    """those written for the comparison alone, beside the report's own"""
    kept: tuple[str, ...]
    """names of them whose files are still there"""
    failures: tuple[str, ...]
    """types that could not be proved, a sentence each"""
    fronts: dict[str, tuple[str, ...]]
    """bytes, decode, prefill, ttft, memory -> names on the Pareto front of it and KL"""
    choice: ChoiceRecord | None = None
    """of --aim; None: not asked for"""
