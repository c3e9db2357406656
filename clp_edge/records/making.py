"""What the writing and judging stages leave: cut, export, evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from clp_edge.records.learning import Span

Variant = Literal["dense", "healed", "control"]


@dataclass(frozen=True)
class Provenance:
    """Where a cut model comes from; a file in its Hugging Face folder."""

    version: str
    """of clp-edge"""
    source: str
    """the dense model, as it was named on the command line"""
    source_name: str
    name: str
    """of the cut model"""
    blocks_before: int
    segments: tuple[Span, ...]
    search_method: str
    heal_method: str


@dataclass(frozen=True)
class CutRecord:
    """The healed Hugging Face folder: its files, relative to the output folder."""

    files: tuple[str, ...]


@dataclass(frozen=True)
class ArtifactRecord:
    """A file (or folder) for the device."""

    name: str
    target: str
    variant: Variant
    path: str
    """relative to the output folder"""
    bytes: int
    bits_per_weight: float | None
    fallback_tensors: int
    sha256: str
    verified: bool
    verify: dict[str, Any]
    """what the proof measured; its keys depend on the format"""


@dataclass(frozen=True)
class ExportRecord:
    """Every artifact, in the order written."""

    artifacts: tuple[ArtifactRecord, ...]
    files: tuple[str, ...]
    """all files of the artifacts, relative to the output folder"""


@dataclass(frozen=True)
class QualityRecord:
    """How good a candidate is beside the dense model; standard errors are over sequences."""

    perplexity: float | None
    perplexity_se: float | None
    kl: float | None
    kl_se: float | None
    top1_agreement: float | None
    tasks: dict[str, Any]
    """task name -> a TaskRecord as plain values; "sanity" -> a SanityRecord"""
    tokens: int | None = None
    top1_agreement_se: float | None = None
    kl_median: float | None = None
    """this and the next three are percentiles over positions"""
    kl_90: float | None = None
    kl_99: float | None = None
    kl_max: float | None = None
    ppl_ratio: float | None = None
    """perplexity over the dense torch model's; paired over sequences, so far tighter than either"""
    ppl_ratio_low: float | None = None
    """ends of its 95 % interval; None from fewer than 5 sequences"""
    ppl_ratio_high: float | None = None
    sequence_nll: tuple[float, ...] = ()
    """mean of each sequence: what pairs any two rows (clp_edge.evaluate.perplexity_ratio)"""
    sequence_kl: tuple[float, ...] = ()


@dataclass(frozen=True)
class MetricRecord:
    """One metric of a task: the share of items that are right."""

    value: float
    se: float | None
    """over items"""
    low: float
    """ends of Wilson's 95 % interval"""
    high: float
    chance: float
    at_chance: bool
    """of this very model: its interval holds what guessing gets"""
    retention: float | None
    """(value - chance) / (dense - chance); None where the dense model itself is at chance"""
    retention_low: float | None
    retention_high: float | None
    dense_at_chance: bool
    hits: str
    """one 1 or 0 an item, in order: what pairs any two rows"""


@dataclass(frozen=True)
class TaskRecord:
    """What a model answered to the items of a task file."""

    form: str
    """choices, contexts or target"""
    items: int
    metric: str
    """the key of `metrics` that a verdict quotes, fixed by the form"""
    metrics: dict[str, MetricRecord]
    target_perplexity: float | None = None
    """of the last word, where the form is "target" """


@dataclass(frozen=True)
class AnswerRecord:
    """One prompt with a plain rule for its answer."""

    name: str
    prompt: str
    text: str
    passed: bool
    kind: str = ""


@dataclass(frozen=True)
class RateRecord:
    """A share with Wilson's 95 % interval."""

    passed: int
    total: int
    low: float
    high: float


@dataclass(frozen=True)
class SanityRecord:
    """How many prompts were answered by their rule."""

    passed: int
    total: int
    answers: tuple[AnswerRecord, ...]
    low: float | None = None
    """ends of the share's 95 % interval"""
    high: float | None = None
    kinds: dict[str, RateRecord] = field(default_factory=dict)
    """arithmetic, brackets, json, list, language, repetition"""


@dataclass(frozen=True)
class SampleRecord:
    """The same prompt continued by both sides."""

    prompt: str
    dense: str
    healed: str
    dense_by: str = "dense"
    """the row of `quality` that wrote it"""
    healed_by: str = "healed"
    mended: str = ""
    """the healed model before quantization, where `healed` is by a file; "": it was not asked"""


@dataclass(frozen=True)
class EvaluateRecord:
    """Quality of the models and of every artifact."""

    quality: dict[str, QualityRecord]
    samples: tuple[SampleRecord, ...]
