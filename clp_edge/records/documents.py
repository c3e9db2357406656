"""The documents that the verbs beside compress leave."""

from __future__ import annotations

from dataclasses import dataclass

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
class EvalDocument:
    """What `eval` prints with --json: quality by path, the dense model first."""

    command: str
    version: str
    dense: str
    fingerprint: str
    """of the dense model's files"""
    evaluation: EvaluationRecord
    quality: dict[str, QualityRecord]
    schema: int = SCHEMA


@dataclass(frozen=True)
class ExportDocument:
    """export.json: what was written and proved."""

    command: str
    version: str
    source: str
    artifacts: tuple[ArtifactRecord, ...]
    seconds: dict[str, float]
    schema: int = SCHEMA
