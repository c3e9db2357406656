"""Every stage's result and report.json as typed records, and the one codec between them and JSON.

A record is a frozen dataclass of plain values: numbers, text, tuples and other records. KL is in
nats per token, times are in seconds, sizes in bytes unless a name says otherwise, and None means
"not measured" (never 0, never NaN). Tensors are not in records: a stage keeps them in safetensors
files beside its record.

The keys of `Report` are a contract with whoever reads report.json: they may grow, not change.
Reading ignores keys that it does not know, so an older reader can read a newer file.

>>> decode(encode(Span(3, 8)), Span)
Span(first=3, last=8)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from clp_edge.errors import ClpEdgeError

SCHEMA: Final = 1

R = TypeVar("R")
Variant = Literal["dense", "healed", "control"]


class RecordError(ClpEdgeError):
    """A document departs from the shape of its record."""


# --- the codec ---------------------------------------------------------------------------------


def encode(record: Any) -> bytes:
    """A record as JSON (UTF-8), two spaces deep; NaN and infinities become null.

    Inside the free objects paths become text, and numpy scalars become numbers. Raises RecordError
    for what JSON cannot hold.
    """
    return msgspec.json.format(_json(record), indent=2) + b"\n"


def decode(document: bytes | str, kind: type[R]) -> R:
    """The record of that kind that a JSON document holds.

    Raises RecordError, naming the place, where the document has another shape.
    """
    try:
        return msgspec.json.decode(document, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RecordError(f"no {kind.__name__}: {error}") from error


def to_plain(record: Any) -> Any:
    """A record as dicts, lists, numbers and text, ready for any JSON writer."""
    return msgspec.json.decode(_json(record))


def from_plain(value: Any, kind: type[R]) -> R:
    """The inverse of `to_plain`. Raises RecordError where the value has another shape."""
    try:
        return msgspec.convert(value, type=kind)
    except msgspec.ValidationError as error:
        raise RecordError(f"no {kind.__name__}: {error}") from error


def _json(record: Any) -> bytes:
    return msgspec.json.encode(record, enc_hook=_known)


def _known(value: Any) -> Any:
    """What the codec does not know itself, as something that it knows."""
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, range):
        return list(value)
    item = getattr(value, "item", None)  # numpy scalars and arrays of one
    if callable(item) and getattr(value, "size", 1) == 1:
        return item()
    raise RecordError(f"a record cannot hold a {type(value).__name__}")


def measured(value: float) -> float | None:
    """The number, or None where it is NaN or infinite: what could not be measured."""
    return float(value) if math.isfinite(value) else None


# --- what the learning stages leave -------------------------------------------------------------


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
    """seconds of collect, refit, tune; and of one tuning step"""
    rungs: tuple[RungRecord, ...] = ()
    """those that were climbed, in order; one that does not apply to this cut is in `notes`"""


# --- what the writing and measuring stages leave ------------------------------------------------


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


@dataclass(frozen=True)
class EvaluateRecord:
    """Quality of the models and of every artifact."""

    quality: dict[str, QualityRecord]
    samples: tuple[SampleRecord, ...]


@dataclass(frozen=True)
class TestRecord:
    """llama-bench's words: tokens of the prompt, tokens made, tokens already in the cache."""

    __test__ = False  # no test class, whatever pytest thinks of the name

    prompt: int
    generate: int
    depth: int


@dataclass(frozen=True)
class SummaryRecord:
    """A median, its interval, how many samples it is of and the confidence they attain."""

    median: float
    low: float
    high: float
    n: int
    confidence: float | None = None
    """what the interval attains, not what was asked for"""


@dataclass(frozen=True)
class RunRecord:
    """The timings of one artifact in one test: one value a round, in the same order everywhere."""

    artifact: str
    variant: str
    target: str
    runtime: str
    runtime_version: str
    backend: str
    test: TestRecord
    status: Literal["ok", "failed", "skipped"]
    reason: str | None
    prefill_tps: tuple[float, ...]
    decode_tps: tuple[float, ...]
    ttft_ms: tuple[float, ...]
    summary: dict[str, SummaryRecord]
    load_ms: float | None
    peak_rss_mib: float | None
    peak_gpu_mib: float | None
    j_per_token: float | None
    bytes_per_token: int | None
    ideal_decode_tps: float | None
    mbu: float | None


@dataclass(frozen=True)
class RatioRecord:
    """A speed-up taken round by round; above 1 is faster, whatever the unit."""

    before: float
    after: float
    median: float
    low: float
    high: float
    ideal: float | None
    """the ratio of the bytes that decode reads, or of the operations of the prefill"""
    bounds: dict[str, float] = field(default_factory=dict)
    """by what bounds the speed -> the ratio that it allows; "bytes" is the ideal of decode"""


@dataclass(frozen=True)
class SpeedupRecord:
    """The healed artifact against the dense one of the same target and runtime."""

    target: str
    runtime: str
    test: TestRecord
    before: str
    after: str
    confidence: float
    """attained by the intervals"""
    n: int
    prefill: RatioRecord
    decode: RatioRecord
    ttft: RatioRecord


@dataclass(frozen=True)
class BandwidthRecord:
    """Read bandwidth of the memory: GB/s (10^9 bytes) of the median and of the fastest pass."""

    gb_per_s: float
    fastest_gb_per_s: float
    buffer_bytes: int
    cache_bytes: int
    threads: int
    passes: int


@dataclass(frozen=True)
class BenchSettingsRecord:
    """How the speed was taken."""

    threads: int
    batch: int
    rounds: int
    warmup_rounds: int
    power_mode: str | None
    memory_bandwidth_gb_s: float | None
    memory_bandwidth: BandwidthRecord | None = None
    busy_share_before: float | None = None
    """of all processors' time that others took, at the first look"""
    busy_share_after_wait: float | None = None
    waited_for_calm_s: float | None = None
    waiting: dict[str, str] = field(default_factory=dict)
    """the variables by which threads wait at barriers, as the children saw them"""
    time_budget_s: float | None = None
    seed: int | None = None
    order: tuple[tuple[str, ...], ...] = ()
    """the artifacts of each round, as they were timed"""
    seconds: float | None = None
    memory: str = ""
    """what peak memory means here"""


@dataclass(frozen=True)
class BenchRecord:
    """The latency suite's results."""

    device: dict[str, Any]
    """the machine as its files describe it; its keys depend on the machine"""
    settings: BenchSettingsRecord
    runs: tuple[RunRecord, ...]
    speedup: tuple[SpeedupRecord, ...]
    warnings: tuple[str, ...] = ()


# --- what the verbs leave -----------------------------------------------------------------------


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


# --- the report ---------------------------------------------------------------------------------


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
