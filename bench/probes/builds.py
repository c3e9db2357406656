"""What the runtimes on this device were built with: llama.cpp's own line, ONNX Runtime's providers.

Each is asked in a child process: a broken library may abort the process that loads it.

>>> build_of("torch") is None
True
"""

from __future__ import annotations

from collections.abc import Iterable

from clp_edge.errors import ClpEdgeError
from clp_edge.runtimes import process

TIMEOUT_S = 60.0


def llama_cpp() -> str:
    """Version, and the backends with their features as llama_print_system_info says them."""
    import llama_cpp as library

    library.llama_backend_init()
    said = " ".join(library.llama_print_system_info().decode(errors="replace").split())
    return f"llama-cpp-python {library.__version__}; {said.rstrip('| ')}"


def onnxruntime() -> str:
    """Version and the providers that the wheel was built with (which need not run here)."""
    import onnxruntime as library

    providers = ", ".join(library.get_available_providers())
    return f"onnxruntime {library.__version__}; providers: {providers}"


ASKED = {
    "llama.cpp": "clp_edge.bench.probes.builds:llama_cpp",
    "onnxruntime": "clp_edge.bench.probes.builds:onnxruntime",
    "onnxruntime-genai": "clp_edge.bench.probes.builds:onnxruntime",
}


def build_of(runtime: str) -> str | None:
    """One line about the build, or why it is not known; None for a runtime without such a line."""
    if runtime not in ASKED:
        return None
    try:
        return str(process.run_in_child(ASKED[runtime], what=runtime, timeout_s=TIMEOUT_S))
    except ClpEdgeError as error:
        return f"not known ({error.cause})"


def builds_of(runtimes: Iterable[str]) -> dict[str, str]:
    """The lines of those runtimes that have one."""
    found = {name: build_of(name) for name in sorted(set(runtimes))}
    return {name: said for name, said in found.items() if said is not None}
