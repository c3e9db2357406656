"""How a Triton kernel is compiled and launched: triton is imported on the first launch, not before.

A kernel is a plain module-level function that speaks of `tl`; `compiled` gives its module the name
`tl` and hands it to `triton.jit`. So every module of this package imports without triton, and the
same source is compiled on a GPU and interpreted under TRITON_INTERPRET=1.

All kernels here are bound by memory: a row of the residual stream is a program of its own, held in
registers from its one read to its one write, and 16 elements go to a thread, which is two 16-byte
loads in half precision.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What the kernels load and store; they compute in float32 whatever it is."""
ELEMENTS_PER_THREAD = 16
THREADS_PER_WARP = 32
MAX_WARPS = 32
MAX_BLOCK = 16_384
"""The longest row that is held in registers; longer ones are walked in blocks of this length."""

_kernels: dict[tuple[str, str, bool], Any] = {}


def interpreting() -> bool:
    """Whether kernels run in triton's interpreter, on the CPU, as triton itself decides it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}


def compiled(function: Callable[..., None]) -> Any:
    """The kernel behind a plain function, made on first use; raises ImportError without triton."""
    import triton
    import triton.language

    key = (function.__module__, function.__name__, interpreting())
    if key not in _kernels:
        vars(sys.modules[function.__module__])["tl"] = triton.language
        _kernels[key] = triton.jit(function)
    return _kernels[key]


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`, and at least 16."""
    return max(16, 1 << (count - 1).bit_length())


def warps(block: int) -> int:
    """How many warps share a block: 16 elements a thread, 32 warps at most."""
    return max(1, min(MAX_WARPS, block // (ELEMENTS_PER_THREAD * THREADS_PER_WARP)))


def as_rows(values: Tensor) -> Tensor:
    """(..., hidden) as (rows, hidden) with elements of a row side by side; a copy only if needed.

    A slice of a wider tensor stays a view, and its rows keep their stride.
    """
    rows = values.reshape(values.numel() // max(1, values.shape[-1]), values.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def as_number(gate: Tensor | float, device: torch.device) -> Tensor:
    """A gate as one float32 number on the device; the host never waits for it."""
    if isinstance(gate, Tensor):
        return gate.reshape(()).to(device, torch.float32)
    return torch.full((), gate, dtype=torch.float32, device=device)


def on_device_of(values: Tensor) -> AbstractContextManager[Any]:
    """Launches inside go to this tensor's GPU, which need not be the current one."""
    return torch.cuda.device(values.device) if values.is_cuda else nullcontext()
