"""The parts of the pipeline as commands of their own: each a tuple of stages and an ending."""

from clp_edge.pipeline.verbs.export import ExportConfig, export
from clp_edge.pipeline.verbs.heal import heal
from clp_edge.pipeline.verbs.prune import prune
from clp_edge.pipeline.verbs.search import compare, search

__all__ = ["ExportConfig", "compare", "export", "heal", "prune", "search"]
