"""The gated residual step: a branch joins the residual stream through a gate, and is normed on.

For the residual r, a branch output b, a gate g and a norm gain w (one row each, hidden H):

    x = round(r + g·b)                                  the new residual
    n = x·rstd,  rstd = (mean(x²) + eps)^-1/2
    y = round(n)·w            casting "llama": normalised in float32, rounded, then the gain
    y = round(n·(1 + w))      casting "gemma": the gain in float32, then rounded

where round goes to r's dtype; all else is float32. At g = 1 these are transformers' residual
addition and LlamaRMSNorm or GemmaRMSNorm. Backward, with d_y and the direct d_x of the stream, and
v = d_y·w (or d_y·(1 + w)):

    d_r = d_x + rstd·(v - n·mean(v·n)),  d_b = g·d_r,  d_g = sum(d_r·b),  d_w = sum over rows(d_y·n)

Forward moves 4 rows of H (r and b in, x and y out), backward 6 (d_y, d_x, x and b in, d_r and d_b
out); eager modes move 9 and more, and keep float32 copies for backward. d_g is one number per row,
then a sum: no atomics, so two runs agree to the bit. d_w is formed only where it is asked for.

Without a branch the block is skipped: its gate is exactly 0, only the norm runs and r passes
through. A residual multiplier (Granite) belongs into g: d_g is by the g given here.

>>> x, y = gated_residual_reference(r, b, g, w, eps=1e-6)                  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clp_edge.kernels import launch

if TYPE_CHECKING:
    import triton.language as tl

Casting = Literal["llama", "gemma"]
CASTINGS: tuple[Casting, ...] = ("llama", "gemma")
GAIN_ROWS = 64
"""Rows that one program of the gain's gradient adds up."""


def check(
    residual: Tensor, branch: Tensor | None, gate: Tensor | float, weight: Tensor, casting: str
) -> None:
    """Raises ValueError where shapes, the gate or the casting do not fit together."""
    if branch is not None and branch.shape != residual.shape:
        raise ValueError(f"branch {tuple(branch.shape)} for residual {tuple(residual.shape)}")
    if weight.shape != residual.shape[-1:]:
        raise ValueError(f"gain {tuple(weight.shape)} for hidden {residual.shape[-1]}")
    if isinstance(gate, Tensor) and gate.numel() != 1:
        raise ValueError(f"one gate per call, not {gate.numel()}")
    if casting not in CASTINGS:
        raise ValueError(f"casting {casting!r}, not one of {', '.join(CASTINGS)}")


def gated_residual_reference(
    residual: Tensor,
    branch: Tensor | None,
    gate: Tensor | float,
    weight: Tensor,
    *,
    eps: float,
    casting: Casting = "llama",
) -> tuple[Tensor, Tensor]:
    """(x, y) in plain torch, differentiable in residual, branch, gate and weight.

    Args: residual and branch (..., hidden); gate, one number; weight (hidden,). float64 stays
        float64. Raises ValueError for shapes that do not fit.
    """
    check(residual, branch, gate, weight, casting)
    dtype = residual.dtype
    wide = torch.promote_types(dtype, torch.float32)
    if branch is None:
        new = residual
    else:
        if isinstance(gate, Tensor):
            gate = gate.reshape(()).to(residual.device, wide)
        new = (residual.to(wide) + gate * branch.to(wide)).to(dtype)
    normed = new.to(wide)
    normed = normed * torch.rsqrt(normed.square().mean(-1, keepdim=True) + eps)
    if casting == "llama":
        return new, (weight.to(wide) * normed.to(dtype).to(wide)).to(dtype)
    return new, (normed * (1.0 + weight.to(wide))).to(dtype)


def _forward(
    r_ptr,
    r_stride,
    b_ptr,
    b_stride,
    gate_ptr,
    w_ptr,
    x_ptr,
    x_stride,
    y_ptr,
    y_stride,
    rstd_ptr,
    eps,
    HIDDEN: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    GEMMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < HIDDEN
    x = tl.load(r_ptr + row * r_stride + at, mask=inside, other=0.0)
    dtype = x.dtype
    if HAS_BRANCH:
        gate = tl.load(gate_ptr)
        b = tl.load(b_ptr + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) + gate * b).to(dtype)
        tl.store(x_ptr + row * x_stride + at, x, mask=inside)
    # What the next block reads is the rounded stream, so that is what the norm must see.
    n = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(n * n, axis=0) / HIDDEN + eps)
    tl.store(rstd_ptr + row, rstd)
    w = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = n * rstd * (1.0 + w) if GEMMA else (n * rstd).to(dtype).to(tl.float32) * w
    tl.store(y_ptr + row * y_stride + at, y.to(dtype), mask=inside)


def _forward_long(
    r_ptr,
    r_stride,
    b_ptr,
    b_stride,
    gate_ptr,
    w_ptr,
    x_ptr,
    x_stride,
    y_ptr,
    y_stride,
    rstd_ptr,
    eps,
    HIDDEN: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    GEMMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    gate = tl.load(gate_ptr)
    squares = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, HIDDEN, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < HIDDEN
        x = tl.load(r_ptr + row * r_stride + at, mask=inside, other=0.0)
        if HAS_BRANCH:
            b = tl.load(b_ptr + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
            x = (x.to(tl.float32) + gate * b).to(x.dtype)
            tl.store(x_ptr + row * x_stride + at, x, mask=inside)
        n = x.to(tl.float32)
        squares += n * n
    rstd = tl.rsqrt(tl.sum(squares, axis=0) / HIDDEN + eps)
    tl.store(rstd_ptr + row, rstd)
    # The second walk forms the sum anew: other threads' stores of x may not be visible here.
    for start in range(0, HIDDEN, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < HIDDEN
        x = tl.load(r_ptr + row * r_stride + at, mask=inside, other=0.0)
        dtype = x.dtype
        if HAS_BRANCH:
            b = tl.load(b_ptr + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
            x = (x.to(tl.float32) + gate * b).to(dtype)
        n = x.to(tl.float32)
        w = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = n * rstd * (1.0 + w) if GEMMA else (n * rstd).to(dtype).to(tl.float32) * w
        tl.store(y_ptr + row * y_stride + at, y.to(dtype), mask=inside)


def _backward(
    dy_ptr,
    dy_stride,
    dx_ptr,
    dx_stride,
    x_ptr,
    x_stride,
    b_ptr,
    b_stride,
    gate_ptr,
    w_ptr,
    rstd_ptr,
    dr_ptr,
    dr_stride,
    db_ptr,
    db_stride,
    dg_ptr,
    HIDDEN: tl.constexpr,
    HAS_DIRECT: tl.constexpr,
    WANT_RESIDUAL: tl.constexpr,
    WANT_BRANCH: tl.constexpr,
    WANT_GATE: tl.constexpr,
    GEMMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < HIDDEN
    rstd = tl.load(rstd_ptr + row)
    v = tl.load(dy_ptr + row * dy_stride + at, mask=inside, other=0.0).to(tl.float32)
    n = tl.load(x_ptr + row * x_stride + at, mask=inside, other=0.0).to(tl.float32) * rstd
    w = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DIRECT:
        direct = tl.load(dx_ptr + row * dx_stride + at, mask=inside, other=0.0).to(tl.float32)
    if WANT_GATE:
        b = tl.load(b_ptr + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
    if GEMMA:
        w += 1.0
    v *= w
    pull = rstd * (v - n * (tl.sum(v * n, axis=0) / HIDDEN))
    if HAS_DIRECT:
        pull += direct
    if WANT_RESIDUAL:
        pulled = pull.to(dr_ptr.dtype.element_ty)
        tl.store(dr_ptr + row * dr_stride + at, pulled, mask=inside)
    if WANT_BRANCH:
        pulled = (tl.load(gate_ptr) * pull).to(db_ptr.dtype.element_ty)
        tl.store(db_ptr + row * db_stride + at, pulled, mask=inside)
    if WANT_GATE:
        tl.store(dg_ptr + row, tl.sum(pull * b, axis=0))


def _backward_long(
    dy_ptr,
    dy_stride,
    dx_ptr,
    dx_stride,
    x_ptr,
    x_stride,
    b_ptr,
    b_stride,
    gate_ptr,
    w_ptr,
    rstd_ptr,
    dr_ptr,
    dr_stride,
    db_ptr,
    db_stride,
    dg_ptr,
    HIDDEN: tl.constexpr,
    HAS_DIRECT: tl.constexpr,
    WANT_RESIDUAL: tl.constexpr,
    WANT_BRANCH: tl.constexpr,
    WANT_GATE: tl.constexpr,
    GEMMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    rstd = tl.load(rstd_ptr + row)
    projected = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, HIDDEN, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < HIDDEN
        v = tl.load(dy_ptr + row * dy_stride + at, mask=inside, other=0.0).to(tl.float32)
        n = tl.load(x_ptr + row * x_stride + at, mask=inside, other=0.0).to(tl.float32) * rstd
        w = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if GEMMA:
            w += 1.0
        projected += v * w * n
    mean = tl.sum(projected, axis=0) / HIDDEN
    raised = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, HIDDEN, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < HIDDEN
        v = tl.load(dy_ptr + row * dy_stride + at, mask=inside, other=0.0).to(tl.float32)
        n = tl.load(x_ptr + row * x_stride + at, mask=inside, other=0.0).to(tl.float32) * rstd
        w = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if GEMMA:
            w += 1.0
        pull = rstd * (v * w - n * mean)
        if HAS_DIRECT:
            pull += tl.load(dx_ptr + row * dx_stride + at, mask=inside, other=0.0).to(tl.float32)
        if WANT_RESIDUAL:
            pulled = pull.to(dr_ptr.dtype.element_ty)
            tl.store(dr_ptr + row * dr_stride + at, pulled, mask=inside)
        if WANT_BRANCH:
            pulled = (tl.load(gate_ptr) * pull).to(db_ptr.dtype.element_ty)
            tl.store(db_ptr + row * db_stride + at, pulled, mask=inside)
        if WANT_GATE:
            b = tl.load(b_ptr + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
            raised += pull * b
    if WANT_GATE:
        tl.store(dg_ptr + row, tl.sum(raised, axis=0))


def _backward_gain(
    dy_ptr,
    dy_stride,
    x_ptr,
    x_stride,
    rstd_ptr,
    dw_ptr,
    rows,
    hidden,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < hidden
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for k in range(ROWS):
        # Rows past the end are the last row again, with weight 0.
        row = tl.minimum(group * ROWS + k, rows - 1)
        rstd = tl.where(group * ROWS + k < rows, tl.load(rstd_ptr + row), 0.0)
        n = tl.load(x_ptr + row * x_stride + at, mask=inside, other=0.0).to(tl.float32) * rstd
        total += n * tl.load(dy_ptr + row * dy_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dw_ptr + group * hidden + at, total, mask=inside)


class _GatedResidual(torch.autograd.Function):
    """Rows in, rows out; what backward needs is x, b and one float32 a row."""

    @staticmethod
    def forward(
        ctx: Any,
        r: Tensor,
        b: Tensor | None,
        gate: Tensor,
        weight: Tensor,
        eps: float,
        casting: Casting,
        block: int,
    ) -> tuple[Tensor, Tensor]:
        rows, hidden = r.shape
        x = r if b is None else torch.empty((rows, hidden), dtype=r.dtype, device=r.device)
        y = torch.empty((rows, hidden), dtype=r.dtype, device=r.device)
        rstd = torch.empty(rows, dtype=torch.float32, device=r.device)
        if rows:
            kernel = launch.compiled(_forward if hidden <= block else _forward_long)
            with launch.on_device_of(r):
                kernel[(rows,)](
                    r,
                    r.stride(0),
                    r if b is None else b,
                    r.stride(0) if b is None else b.stride(0),
                    gate,
                    weight,
                    x,
                    x.stride(0),
                    y,
                    y.stride(0),
                    rstd,
                    eps,
                    HIDDEN=hidden,
                    HAS_BRANCH=b is not None,
                    GEMMA=casting == "gemma",
                    BLOCK=block,
                    num_warps=launch.warps(block),
                )
        ctx.save_for_backward(x, b if ctx.needs_input_grad[2] else None, gate, weight, rstd)
        ctx.casting = casting
        ctx.block = block
        ctx.branch_dtype = None if b is None else b.dtype
        ctx.set_materialize_grads(False)
        return x, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        x, b, gate, weight, rstd = ctx.saved_tensors
        want_r, want_b, want_g, want_w = ctx.needs_input_grad[:4]
        want_b = want_b and ctx.branch_dtype is not None
        want_g = want_g and ctx.branch_dtype is not None
        rows, hidden = x.shape
        dy = torch.zeros_like(x) if dy is None else launch.as_rows(dy)
        dx = None if dx is None else launch.as_rows(dx)

        def empty(wanted: bool, dtype: torch.dtype) -> Tensor:
            # An output that nobody wants still needs a pointer; nothing is written there.
            if not wanted:
                return rstd
            return torch.empty((rows, hidden), dtype=dtype, device=x.device)

        dr = empty(want_r, x.dtype)
        db = empty(want_b, ctx.branch_dtype)
        dg = torch.empty_like(rstd) if want_g else rstd
        if rows and (want_r or want_b or want_g):
            kernel = launch.compiled(_backward if hidden <= ctx.block else _backward_long)
            with launch.on_device_of(x):
                kernel[(rows,)](
                    dy,
                    dy.stride(0),
                    x if dx is None else dx,
                    x.stride(0) if dx is None else dx.stride(0),
                    x,
                    x.stride(0),
                    b if want_g else x,
                    b.stride(0) if want_g else x.stride(0),
                    gate,
                    weight,
                    rstd,
                    dr,
                    dr.stride(0),
                    db,
                    db.stride(0),
                    dg,
                    HIDDEN=hidden,
                    HAS_DIRECT=dx is not None,
                    WANT_RESIDUAL=want_r,
                    WANT_BRANCH=want_b,
                    WANT_GATE=want_g,
                    GEMMA=ctx.casting == "gemma",
                    BLOCK=ctx.block,
                    num_warps=launch.warps(ctx.block),
                )
        return (
            dr if want_r else None,
            db if want_b else None,
            dg.sum() if want_g else None,
            _gain_gradient(dy, x, rstd).to(weight.dtype) if want_w else None,
            None,
            None,
            None,
        )


def _gain_gradient(dy: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """d_w (hidden,) float32: partial sums of `GAIN_ROWS` rows each, then their sum."""
    rows, hidden = x.shape
    groups = -(-rows // GAIN_ROWS)
    partial = torch.empty((groups, hidden), dtype=torch.float32, device=x.device)
    block = min(1024, launch.power_of_two(hidden))
    if rows:
        with launch.on_device_of(x):
            launch.compiled(_backward_gain)[(groups, -(-hidden // block))](
                dy,
                dy.stride(0),
                x,
                x.stride(0),
                rstd,
                partial,
                rows,
                hidden,
                ROWS=GAIN_ROWS,
                BLOCK=block,
                num_warps=launch.warps(block),
            )
    return partial.sum(0)


def gated_residual_triton(
    residual: Tensor,
    branch: Tensor | None,
    gate: Tensor | float,
    weight: Tensor,
    *,
    eps: float,
    casting: Casting = "llama",
    max_block: int = launch.MAX_BLOCK,
) -> tuple[Tensor, Tensor]:
    """`gated_residual_reference` as Triton kernels; dtypes as in `launch.DTYPES`.

    Args: max_block, a power of two: rows longer than this are walked in blocks of it.
    """
    check(residual, branch, gate, weight, casting)
    shape, hidden = residual.shape, residual.shape[-1]
    r = launch.as_rows(residual)
    b = None if branch is None else launch.as_rows(branch)
    number = launch.as_number(gate, residual.device)
    block = min(max_block, launch.power_of_two(hidden))
    x, y = _GatedResidual.apply(r, b, number, weight.contiguous(), eps, casting, block)
    return x.view(shape), y.view(shape)
