"""report.json: its keys are a contract with whoever reads the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from msgspec import UNSET, UnsetType

from clp_edge.records.bench import BenchRecord, ContextMemoryRecord
from clp_edge.records.judging import (
    FrontierRecord,
    GateVerdictRecord,
    GoalRecord,
    TriesRecord,
)
from clp_edge.records.learning import EvaluationRecord, HealRecord, SearchRecord
from clp_edge.records.making import ArtifactRecord, QualityRecord, SampleRecord

SCHEMA: Final = 1


@dataclass(frozen=True)
class ModelRecord:
    """The dense model, and what its own files say of its licence."""

    source: str
    architecture: str
    blocks: int
    parameters: int
    """a tied head counted once"""
    name: str | None = None
    parameters_after: int | None = None
    base_model: str | None = None
    """its id on the Hugging Face hub"""
    license: str | UnsetType | None = UNSET
    """None: the source says nothing; UNSET (no such key in the file): nobody looked"""
    license_link: str | None = None
    license_stated_in: str | None = None
    """the file, or the key of a GGUF file, that says it"""


@dataclass(frozen=True)
class Report:
    """report.json. None: not done or not measured; a name in `quality` is an artifact's or
    "dense", "pruned", "healed" (the models before quantization).
    """

    schema: Literal[1]
    command: str
    version: str
    model: ModelRecord
    seed: int
    verdict: str
    evaluation: EvaluationRecord | None
    search: SearchRecord | None
    heal: HealRecord | None
    quality: dict[str, QualityRecord]
    artifacts: tuple[ArtifactRecord, ...]
    bench: BenchRecord | None
    seconds: dict[str, float]
    """of each stage"""
    peak_memory_mib: dict[str, float | None]
    environment: dict[str, Any]
    """versions that the numbers depend on; its keys are free"""
    samples: tuple[SampleRecord, ...] = ()
    warnings: tuple[str, ...] = ()
    quality_gate: GateVerdictRecord | None = None
    """the quality that was asked for; None: none was"""
    tries: TriesRecord | None = None
    """every cut that `--prune auto` tried; None: the cut was given"""
    goal: GoalRecord | None = None
    """the size or speed that was asked for, and whether it holds; None: none was"""
    frontier: FrontierRecord | None = None
    """--frontier: the same two models at several types; their quality and runs are in `quality`
    and `bench` with all others"""
    context_memory: dict[str, ContextMemoryRecord] = field(default_factory=dict)
    """artifact -> weights and cache at a long context"""
