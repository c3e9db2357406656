"""How good a model or an artifact is: perplexity, KL to the dense model, sane generations."""

from clp_edge.evaluate.choices import (
    Answers,
    Asked,
    Scorer,
    answer,
    encode,
    model_scorer,
    retention,
)
from clp_edge.evaluate.gate import QualityGate
from clp_edge.evaluate.generation import Answer, Generate, Sanity, sample, sample_artifact, sanity
from clp_edge.evaluate.intervals import Estimate, paired_interval, perplexity_ratio, rate
from clp_edge.evaluate.perplexity import (
    DenseReference,
    Quality,
    measure_artifact,
    measure_dense,
    measure_model,
    measure_pair,
)
from clp_edge.evaluate.tasks import Task, contents, read_task, read_tasks

__all__ = [
    "Answer",
    "Answers",
    "Asked",
    "DenseReference",
    "Estimate",
    "Generate",
    "Quality",
    "QualityGate",
    "Sanity",
    "Scorer",
    "Task",
    "answer",
    "contents",
    "encode",
    "measure_artifact",
    "measure_dense",
    "measure_model",
    "measure_pair",
    "model_scorer",
    "paired_interval",
    "perplexity_ratio",
    "rate",
    "read_task",
    "read_tasks",
    "retention",
    "sample",
    "sample_artifact",
    "sanity",
]
