"""What `search --compare` leaves: methods side by side on one problem, in compare.json."""

from __future__ import annotations

from dataclasses import dataclass

from clp_edge.records.learning import Span, WindowRecord
from clp_edge.records.report import SCHEMA


@dataclass(frozen=True)
class ComparedRecord:
    """One run of one method; regret is KL(choice) / min KL - 1 by the exact KL of all windows."""

    method: str
    seed: int
    own: Span | None
    """its favourite before the judge; None where it leaves the choice to the judge"""
    own_regret: float | None
    segment: Span
    regret: float
    tie: bool
    """whether its excess over the oracle's window is within one paired standard error"""
    judged: int
    """windows that were judged on every sequence"""
    forward_equivalents: float
    seconds: float


@dataclass(frozen=True)
class CriteriaRecord:
    """The choice by raw and by healed KL, judged after the refit on text that neither saw."""

    raw: Span
    healed: Span
    gap: float
    """KL after the refit of healed's choice less that of raw's, nats; 0 where they are the same"""
    gap_se: float


@dataclass(frozen=True)
class ComparisonRecord:
    """All methods on one problem."""

    count: int
    """blocks that go"""
    tokens: int
    sequence_length: int
    windows: tuple[WindowRecord, ...]
    """the exact curve"""
    forward_equivalents: float
    """of the exact curve"""
    seconds: float
    """of the exact curve"""
    rows: tuple[ComparedRecord, ...]
    criteria: CriteriaRecord | None


@dataclass(frozen=True)
class CompareDocument:
    """compare.json."""

    command: str
    version: str
    source: str
    fingerprint: str
    blocks: int
    text: str
    """where the calibration text comes from"""
    comparison: ComparisonRecord
    date: str
    environment: dict[str, str]
    peak_memory_mib: dict[str, float | None]
    schema: int = SCHEMA
