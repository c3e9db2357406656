"""The pipeline: `compress()` runs the stages in order, each with its own folder entry.

>>> outcome = compress(CompressConfig(targets=("gguf-q4",)))       # doctest: +SKIP
>>> outcome.report["verdict"], outcome.out                         # doctest: +SKIP
"""

from clp_edge.pipeline.compress import Outcome, compress
from clp_edge.pipeline.preflight import Plan, preflight

__all__ = ["Outcome", "Plan", "compress", "preflight"]
