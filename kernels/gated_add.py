"""The gated residual sum alone, for families where no norm follows it: x = round(r + g·b).

OLMo 2 norms a branch after it has run and hands the stream itself to the next one, so there is
nothing to fuse the sum with. The product and the sum are float32, rounded once to r's dtype.
Backward, for the stream's gradient d_x:

    d_r = d_x,  d_b = g·d_x,  d_g = sum(d_x·b)

Forward moves 3 rows (r and b in, x out), backward 3 (d_x and b in, d_b out): d_r is d_x itself.
d_g is one number per program, then a sum: no atomics, so two runs agree to the bit.

>>> x = gated_add_reference(r, b, g)                                       # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clp_edge.kernels import launch

if TYPE_CHECKING:
    import triton.language as tl

BLOCK = 4096
"""Columns of one program; longer rows take several programs."""


def check(residual: Tensor, branch: Tensor, gate: Tensor | float) -> None:
    """Raises ValueError where the shapes or the gate do not fit together."""
    if branch.shape != residual.shape:
        raise ValueError(f"branch {tuple(branch.shape)} for residual {tuple(residual.shape)}")
    if isinstance(gate, Tensor) and gate.numel() != 1:
        raise ValueError(f"one gate per call, not {gate.numel()}")


def gated_add_reference(residual: Tensor, branch: Tensor, gate: Tensor | float) -> Tensor:
    """x in plain torch, differentiable in residual, branch and gate.

    Args: residual and branch (..., hidden); gate, one number. float64 stays float64. Raises
        ValueError for shapes that do not fit.
    """
    check(residual, branch, gate)
    wide = torch.promote_types(residual.dtype, torch.float32)
    if isinstance(gate, Tensor):
        gate = gate.reshape(()).to(residual.device, wide)
    return (residual.to(wide) + gate * branch.to(wide)).to(residual.dtype)


def _forward(
    r_ptr,
    r_stride,
    b_ptr,
    b_stride,
    gate_ptr,
    x_ptr,
    x_stride,
    width,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    r = tl.load(r_ptr + row * r_stride + at, mask=inside, other=0.0)
    b = tl.load(b_ptr + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
    x = r.to(tl.float32) + tl.load(gate_ptr) * b
    tl.store(x_ptr + row * x_stride + at, x.to(r.dtype), mask=inside)


def _backward(
    dx_ptr,
    dx_stride,
    b_ptr,
    b_stride,
    gate_ptr,
    db_ptr,
    db_stride,
    dg_ptr,
    width,
    WANT_BRANCH: tl.constexpr,
    WANT_GATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1)
    at = column * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    dx = tl.load(dx_ptr + row * dx_stride + at, mask=inside, other=0.0).to(tl.float32)
    if WANT_GATE:
        b = tl.load(b_ptr + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
    if WANT_BRANCH:
        pulled = (tl.load(gate_ptr) * dx).to(db_ptr.dtype.element_ty)
        tl.store(db_ptr + row * db_stride + at, pulled, mask=inside)
    if WANT_GATE:
        tl.store(dg_ptr + row * tl.num_programs(1) + column, tl.sum(dx * b, axis=0))


class _GatedAdd(torch.autograd.Function):
    """Rows in, rows out; backward keeps the branch, and that only where d_g is wanted."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, b: Tensor, gate: Tensor) -> Tensor:
        rows, width = r.shape
        x = torch.empty((rows, width), dtype=r.dtype, device=r.device)
        block = min(BLOCK, launch.power_of_two(width))
        if r.numel():
            with launch.on_device_of(r):
                launch.compiled(_forward)[(rows, -(-width // block))](
                    r,
                    r.stride(0),
                    b,
                    b.stride(0),
                    gate,
                    x,
                    x.stride(0),
                    width,
                    BLOCK=block,
                    num_warps=launch.warps(block),
                )
        ctx.save_for_backward(b if ctx.needs_input_grad[2] else None, gate)
        ctx.branch_dtype = b.dtype
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        b, gate = ctx.saved_tensors
        want_r, want_b, want_g = ctx.needs_input_grad
        direct = dx
        dx = launch.as_rows(dx)
        rows, width = dx.shape
        block = min(BLOCK, launch.power_of_two(width))
        columns = -(-width // block)
        dg = torch.empty((rows, columns), dtype=torch.float32, device=dx.device)
        # An output that nobody wants still needs a pointer; nothing is written there.
        db = torch.empty((rows, width), dtype=ctx.branch_dtype, device=dx.device) if want_b else dg
        if dx.numel() and (want_b or want_g):
            with launch.on_device_of(dx):
                launch.compiled(_backward)[(rows, columns)](
                    dx,
                    dx.stride(0),
                    b if want_g else dx,
                    b.stride(0) if want_g else dx.stride(0),
                    gate,
                    db,
                    db.stride(0),
                    dg,
                    width,
                    WANT_BRANCH=want_b,
                    WANT_GATE=want_g,
                    BLOCK=block,
                    num_warps=launch.warps(block),
                )
        return direct if want_r else None, db if want_b else None, dg.sum() if want_g else None


def gated_add_triton(residual: Tensor, branch: Tensor, gate: Tensor | float) -> Tensor:
    """`gated_add_reference` as Triton kernels; dtypes as in `launch.DTYPES`."""
    check(residual, branch, gate)
    number = launch.as_number(gate, residual.device)
    x = _GatedAdd.apply(launch.as_rows(residual), launch.as_rows(branch), number)
    return x.view(residual.shape)
