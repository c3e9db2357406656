"""How good a model or an artifact is: perplexity, KL to the dense model, sane generations."""

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

__all__ = [
    "Answer",
    "DenseReference",
    "Estimate",
    "Generate",
    "Quality",
    "Sanity",
    "measure_artifact",
    "measure_dense",
    "measure_model",
    "measure_pair",
    "paired_interval",
    "perplexity_ratio",
    "rate",
    "sample",
    "sample_artifact",
    "sanity",
]
