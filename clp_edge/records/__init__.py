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

from clp_edge.records.bench import (
    BandwidthRecord,
    BenchRecord,
    BenchSettingsRecord,
    ContextMemoryRecord,
    EnergyRecord,
    HeatRecord,
    MemoryRecord,
    RatioRecord,
    RunRecord,
    SpeedupRecord,
    SummaryRecord,
    TestRecord,
)
from clp_edge.records.codec import (
    RecordError,
    decode,
    encode,
    from_plain,
    measured,
    to_plain,
)
from clp_edge.records.comparing import (
    CompareDocument,
    ComparedRecord,
    ComparisonRecord,
    CriteriaRecord,
)
from clp_edge.records.documents import (
    CutDocument,
    EvalDocument,
    ExportDocument,
    SearchDocument,
    SuiteMetricRecord,
    SuiteRecord,
    SuitesRecord,
)
from clp_edge.records.judging import (
    ChoiceRecord,
    FrontierRecord,
    GateVerdictRecord,
    GoalRecord,
    PredictedCut,
    PredictionRecord,
    TriesRecord,
    TryRecord,
)
from clp_edge.records.learning import (
    CalibrationRecord,
    EvaluationRecord,
    GateRecord,
    HealRecord,
    PairRecord,
    RivalRecord,
    RungRecord,
    SearchRecord,
    Span,
    TuningRecord,
    WindowRecord,
)
from clp_edge.records.making import (
    AnswerRecord,
    ArtifactRecord,
    CutRecord,
    EvaluateRecord,
    ExportRecord,
    MetricRecord,
    Provenance,
    QualityRecord,
    RateRecord,
    SampleRecord,
    SanityRecord,
    TaskRecord,
    Variant,
)
from clp_edge.records.report import (
    SCHEMA,
    ModelRecord,
    Report,
)

__all__ = [
    "SCHEMA",
    "AnswerRecord",
    "ArtifactRecord",
    "BandwidthRecord",
    "BenchRecord",
    "BenchSettingsRecord",
    "CalibrationRecord",
    "ChoiceRecord",
    "CompareDocument",
    "ComparedRecord",
    "ComparisonRecord",
    "ContextMemoryRecord",
    "CriteriaRecord",
    "CutDocument",
    "CutRecord",
    "EnergyRecord",
    "EvalDocument",
    "EvaluateRecord",
    "EvaluationRecord",
    "ExportDocument",
    "ExportRecord",
    "FrontierRecord",
    "GateRecord",
    "GateVerdictRecord",
    "GoalRecord",
    "HealRecord",
    "HeatRecord",
    "MemoryRecord",
    "MetricRecord",
    "ModelRecord",
    "PairRecord",
    "PredictedCut",
    "PredictionRecord",
    "Provenance",
    "QualityRecord",
    "RateRecord",
    "RatioRecord",
    "RecordError",
    "Report",
    "RivalRecord",
    "RunRecord",
    "RungRecord",
    "SampleRecord",
    "SanityRecord",
    "SearchDocument",
    "SearchRecord",
    "Span",
    "SpeedupRecord",
    "SuiteMetricRecord",
    "SuiteRecord",
    "SuitesRecord",
    "SummaryRecord",
    "TaskRecord",
    "TestRecord",
    "TriesRecord",
    "TryRecord",
    "TuningRecord",
    "Variant",
    "WindowRecord",
    "decode",
    "encode",
    "from_plain",
    "measured",
    "to_plain",
]
