"""What is built for an execution provider is verified on it, so the provider has to compute here.

It multiplies in a child process, once in the life of ours (PITFALLS 18).
"""

from __future__ import annotations

import functools

from clp_edge.errors import ClpEdgeError, PreflightError, RuntimeDiedError, UsageError
from clp_edge.export.onnx.targets import EXECUTION_PROVIDERS
from clp_edge.jetson import jetson_model
from clp_edge.ort_packages import ONNXRUNTIME, provider_problem, version_of
from clp_edge.runtimes.process import run_in_child


@functools.cache
def fault(name: str) -> str:
    """What keeps "CUDAExecutionProvider" from computing here; "" where nothing does."""
    try:
        spec = "clp_edge.ort_packages:fault_on"
        said: str = run_in_child(spec, what="a product", timeout_s=120.0, provider=name)
    except RuntimeDiedError as error:
        return error.cause
    return said


def problem(provider: str) -> ClpEdgeError | None:
    """Why nothing can be built here for "cpu", "cuda" or "dml", with the cure."""
    if provider not in EXECUTION_PROVIDERS:
        known = ", ".join(EXECUTION_PROVIDERS)
        return UsageError(f"unknown execution provider {provider!r} (--ep)", f"take one of {known}")
    name = EXECUTION_PROVIDERS[provider]
    return provider_problem(name, fault(name), jetson=jetson_model())


def prove(provider: str) -> str:
    """ "onnxruntime 1.32.0, CPUExecutionProvider", after it computed; PreflightError otherwise."""
    if (found := problem(provider)) is not None:
        raise PreflightError([found])
    here = next(twin for twin in ONNXRUNTIME if version_of(twin))
    return f"{here} {version_of(here)}, {EXECUTION_PROVIDERS[provider]}"
