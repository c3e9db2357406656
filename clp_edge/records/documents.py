"""The documents that the verbs beside compress leave."""

from __future__ import annotations

from dataclasses import dataclass, field

from clp_edge.records.judging import GateVerdictRecord
from clp_edge.records.learning import EvaluationRecord, HealRecord, SearchRecord
from clp_edge.records.making import ArtifactRecord, Provenance, QualityRecord
from clp_edge.records.report import SCHEMA


@dataclass(frozen=True)
class SearchDocument:
    """search.json: which blocks of which model go; `prune --from` reads it."""

    command: str
    version: str
    source: str
    """the model, as it was named on the command line"""
    source_name: str
    fingerprint: str
    """of the model's files"""
    blocks: int
    search: SearchRecord
    seconds: dict[str, float]
    schema: int = SCHEMA


@dataclass(frozen=True)
class CutDocument:
    """prune.json and heal.json: the cut folder and how it came to be."""

    command: str
    version: str
    folder: str
    """relative to the output folder"""
    provenance: Provenance
    search: SearchRecord
    heal: HealRecord | None
    seconds: dict[str, float]
    schema: int = SCHEMA


@dataclass(frozen=True)
class SuiteMetricRecord:
    """One figure of lm-eval, as it gives it."""

    value: float
    se: float | None
    """its own standard error; None where it has none"""
    higher_is_better: bool | None


@dataclass(frozen=True)
class SuiteRecord:
    """A task of lm-eval, or a group of them: its own definition, version and metrics."""

    version: str
    """of the task's definition; empty where it has none"""
    items: int
    """that were asked"""
    total: int | None
    """in its data set; None for a group"""
    fewshot: int
    metrics: dict[str, SuiteMetricRecord]
    """"acc,none" and so on: metric, then the filter of the answers"""


@dataclass(frozen=True)
class SuitesRecord:
    """What models and files answered to standard suites."""

    harness: str
    """"lm-eval" and its version"""
    window: int
    """most tokens in a model at once"""
    answers: dict[str, dict[str, SuiteRecord]]
    """path -> task -> record; the dense model first"""


@dataclass(frozen=True)
class EvalDocument:
    """What `eval` prints with --json: quality by path, the dense model first."""

    command: str
    version: str
    dense: str
    fingerprint: str
    """of the dense model's files"""
    evaluation: EvaluationRecord
    quality: dict[str, QualityRecord]
    quality_gate: GateVerdictRecord | None = None
    """what each path says to the quality that was asked for; None: none was"""
    schema: int = SCHEMA
    suites: SuitesRecord | None = None
    computed_on: dict[str, str] = field(default_factory=dict)
    """of each file that a runtime opened: the runtime, where it computed and why"""


@dataclass(frozen=True)
class ExportDocument:
    """export.json: what was written and proved."""

    command: str
    version: str
    source: str
    artifacts: tuple[ArtifactRecord, ...]
    seconds: dict[str, float]
    schema: int = SCHEMA
