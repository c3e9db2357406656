"""The pipeline: `compress()` runs the stages in order, each with its own folder entry.

>>> from clp_edge.config import CompressConfig
>>> outcome = compress(CompressConfig(targets=("gguf-q4",)))       # doctest: +SKIP
>>> outcome.out                                                    # doctest: +SKIP
PosixPath('SmolLM2-135M-Instruct-clp20')
"""

from clp_edge.pipeline.compress import Outcome, compress
from clp_edge.pipeline.preflight import Plan, preflight

__all__ = ["Outcome", "Plan", "compress", "preflight"]
