"""One way to open an artifact, in a child process: logits, tokens, a generation, timed runs."""

from clp_edge.runtimes.base import ArtifactInfo, Session, Timing
from clp_edge.runtimes.offload import GpuLayers, parse_gpu_layers
from clp_edge.runtimes.process import ChildDiedError, patience_s, run_in_child
from clp_edge.runtimes.session import default_threads, llama_cpp_available, open_artifact

__all__ = [
    "ArtifactInfo",
    "ChildDiedError",
    "GpuLayers",
    "Session",
    "Timing",
    "default_threads",
    "llama_cpp_available",
    "open_artifact",
    "parse_gpu_layers",
    "patience_s",
    "run_in_child",
]
