"""Which form of each operation runs: Triton kernels on CUDA, plain torch elsewhere, with a reason.

`CLP_EDGE_KERNELS=triton` or `torch` forces one of them. Triton kernels run on a CUDA device, or on
the CPU in triton's interpreter where TRITON_INTERPRET=1 is set (slow: for tests alone).

>>> choose(torch.device("cpu"))
Choice(name='torch', reason='no CUDA device')
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from clp_edge.errors import ClpEdgeError, MissingDependencyError, UsageError
from clp_edge.kernels import launch
from clp_edge.kernels.gated_add import gated_add_reference, gated_add_triton
from clp_edge.kernels.gated_residual import (
    Casting,
    gated_residual_reference,
    gated_residual_triton,
)
from clp_edge.kernels.glu import geglu_reference, geglu_triton, swiglu_reference, swiglu_triton
from clp_edge.kernels.head_rows import (
    diverge_reference_,
    diverge_triton_,
    normalise_reference_,
    normalise_triton_,
)

Kernels = Literal["triton", "torch"]
VARIABLE = "CLP_EDGE_KERNELS"
OLDEST_CARD = (8, 0)
"""Triton supports NVIDIA cards from Ampere on."""
INSTALL = "pip install 'clp-edge[kernels]'"


class Choice(NamedTuple):
    """What runs, and why: "torch", "no CUDA device"."""

    name: Kernels
    reason: str


def choose(device: torch.device) -> Choice:
    """The kernels for tensors on this device.

    Raises: UsageError for a bad value of CLP_EDGE_KERNELS, or Triton forced where there is no CUDA
        device; MissingDependencyError where it is forced and not installed.
    """
    return _choose(
        device.type,
        -1 if device.index is None else device.index,
        os.environ.get(VARIABLE, "").strip().lower(),
        launch.interpreting(),
    )


@lru_cache(maxsize=64)
def _choose(kind: str, index: int, wanted: str, interpreted: bool) -> Choice:
    if wanted not in {"", "auto", "triton", "torch"}:
        raise UsageError(f"{VARIABLE}={wanted!r} is not known", "set it to triton, torch or auto")
    if wanted == "torch":
        return Choice("torch", f"{VARIABLE}=torch")
    problem = _obstacle(kind, index, interpreted)
    if wanted == "triton":
        if problem is not None:
            raise problem
        how = "interpreted on the CPU" if interpreted else _card(index)
        return Choice("triton", f"{VARIABLE}=triton, {how}")
    if kind != "cuda":
        return Choice("torch", "no CUDA device")
    if problem is not None:
        return Choice("torch", problem.cause)
    return Choice("triton", _card(index))


def _obstacle(kind: str, index: int, interpreted: bool) -> ClpEdgeError | None:
    """Why Triton cannot run on this device, or None."""
    if importlib.util.find_spec("triton") is None:
        return MissingDependencyError("triton is not installed", INSTALL)
    if interpreted:
        return None
    if kind != "cuda":
        return UsageError(
            "Triton kernels need a CUDA device", f"unset {VARIABLE}, or set it to torch"
        )
    capability = torch.cuda.get_device_capability(None if index < 0 else index)
    if torch.version.hip is None and capability < OLDEST_CARD:
        return UsageError(
            f"{_card(index)} is older than Triton supports (sm_{capability[0]}{capability[1]})",
            f"set {VARIABLE}=torch",
        )
    # Triton compiles a small launcher in C for each kernel.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return MissingDependencyError(
            "triton needs a C compiler and there is none", "install gcc, or set CC"
        )
    return None


def _card(index: int) -> str:
    return torch.cuda.get_device_name(None if index < 0 else index)


def describe() -> str:
    """One line for `doctor` and the report: "torch reference (no CUDA device)".

    Raises what `choose` raises.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choice = choose(device)
    return f"{'Triton' if choice.name == 'triton' else 'torch reference'} ({choice.reason})"


def uses_triton(values: Tensor) -> bool:
    """Whether an operation on these values runs as a Triton kernel."""
    return values.dtype in launch.DTYPES and choose(values.device).name == "triton"


def gated_residual(
    residual: Tensor,
    branch: Tensor | None,
    gate: Tensor | float,
    weight: Tensor,
    *,
    eps: float,
    casting: Casting = "llama",
) -> tuple[Tensor, Tensor]:
    """x = residual + gate·branch and its gained RMS norm: see `kernels.gated_residual`."""
    run = gated_residual_triton if uses_triton(residual) else gated_residual_reference
    return run(residual, branch, gate, weight, eps=eps, casting=casting)


def gated_add(residual: Tensor, branch: Tensor, gate: Tensor | float) -> Tensor:
    """residual + gate·branch, with no norm behind it: see `kernels.gated_add`."""
    run = gated_add_triton if uses_triton(residual) else gated_add_reference
    return run(residual, branch, gate)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate)·up: see `kernels.glu`."""
    return (swiglu_triton if uses_triton(gate) else swiglu_reference)(gate, up)


def geglu(gate: Tensor, up: Tensor, *, tanh: bool = True) -> Tensor:
    """gelu(gate)·up, by the tanh form or by erf: see `kernels.glu`."""
    return (geglu_triton if uses_triton(gate) else geglu_reference)(gate, up, tanh=tanh)


def normalise_(scores: Tensor, *, scale: float, softcap: float | None, replace: bool) -> Tensor:
    """Each row's log-sum-exp; the scores become probabilities: see `kernels.head_rows`."""
    run = normalise_triton_ if uses_triton(scores) else normalise_reference_
    return run(scores, scale=scale, softcap=softcap, replace=replace)


def diverge_(
    dense: Tensor, scores: Tensor, *, scale: float, softcap: float | None, replace: bool
) -> Tensor:
    """Each row's KL; the scores become its gradient: see `kernels.head_rows`."""
    run = diverge_triton_ if uses_triton(scores) else diverge_reference_
    return run(dense, scores, scale=scale, softcap=softcap, replace=replace)
