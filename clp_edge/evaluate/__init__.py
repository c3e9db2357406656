"""How good a model or an artifact is: perplexity, KL to the dense model, sane generations."""

from clp_edge.evaluate.generation import Answer, Sanity, sample, sanity
from clp_edge.evaluate.perplexity import (
    DenseReference,
    Quality,
    measure_artifact,
    measure_dense,
    measure_model,
)

__all__ = [
    "Answer",
    "DenseReference",
    "Quality",
    "Sanity",
    "measure_artifact",
    "measure_dense",
    "measure_model",
    "sample",
    "sanity",
]
