"""The gated linear unit's activation and product, y = act(a)·b, one pass forward, one backward.

    swiglu:  act(a) = a·s(a), s the logistic function            (Llama, Qwen, Phi, ...)
    geglu:   act(a) = a·(1 + erf(a/√2))/2, or with tanh
             act(a) = a·(1 + tanh(√(2/π)·(a + 0.044715·a³)))/2    (Gemma)

act(a) is rounded to the dtype before the product, as transformers' MLPs do it. Backward forms the
activation anew from a, so that nothing but a and b is kept: d_a = d_y·b·act'(a), d_b = d_y·act(a).
Forward moves 3 rows, backward 5; eager modes move 5 and 8, and keep act(a).

>>> y = swiglu_reference(gate_projection, up_projection)                   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clp_edge.kernels import launch

if TYPE_CHECKING:
    import triton.language as tl

Activation = Literal["silu", "gelu_tanh", "gelu"]
BLOCK = 2048
"""Columns of one program; longer rows take several programs."""


def check(gate: Tensor, up: Tensor) -> None:
    """Raises ValueError where the two halves do not fit together."""
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"gate {tuple(gate.shape)} {gate.dtype} and up {tuple(up.shape)} {up.dtype}"
        )


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate)·up in plain torch: (..., intermediate) each."""
    check(gate, up)
    return torch.nn.functional.silu(gate) * up


def geglu_reference(gate: Tensor, up: Tensor, *, tanh: bool = True) -> Tensor:
    """gelu(gate)·up in plain torch, by the tanh form or by erf."""
    check(gate, up)
    return torch.nn.functional.gelu(gate, approximate="tanh" if tanh else "none") * up


def _forward(
    a_ptr,
    a_stride,
    b_ptr,
    b_stride,
    y_ptr,
    y_stride,
    width,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    loaded = tl.load(a_ptr + row * a_stride + at, mask=inside, other=0.0)
    b = tl.load(b_ptr + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
    a = loaded.to(tl.float32)
    if ACTIVATION == "silu":
        share = 1.0 / (1.0 + tl.exp(-a))
    elif ACTIVATION == "gelu":
        share = 0.5 * (1.0 + tl.erf(a * 0.7071067811865476))
    else:
        # (1 + tanh u) / 2 is the logistic function of 2u, which cannot overflow to nan.
        share = 1.0 / (1.0 + tl.exp(-1.5957691216057308 * (a + 0.044715 * a * a * a)))
    act = (a * share).to(loaded.dtype).to(tl.float32)
    tl.store(y_ptr + row * y_stride + at, (act * b).to(loaded.dtype), mask=inside)


def _backward(
    dy_ptr,
    dy_stride,
    a_ptr,
    a_stride,
    b_ptr,
    b_stride,
    da_ptr,
    da_stride,
    db_ptr,
    db_stride,
    width,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    loaded = tl.load(a_ptr + row * a_stride + at, mask=inside, other=0.0)
    b = tl.load(b_ptr + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * dy_stride + at, mask=inside, other=0.0).to(tl.float32)
    a = loaded.to(tl.float32)
    if ACTIVATION == "silu":
        share = 1.0 / (1.0 + tl.exp(-a))
        slope = share * (1.0 + a * (1.0 - share))
    elif ACTIVATION == "gelu":
        share = 0.5 * (1.0 + tl.erf(a * 0.7071067811865476))
        slope = share + a * 0.3989422804014327 * tl.exp(-0.5 * a * a)
    else:
        share = 1.0 / (1.0 + tl.exp(-1.5957691216057308 * (a + 0.044715 * a * a * a)))
        steep = 1.5957691216057308 * (1.0 + 0.134145 * a * a)
        slope = share + a * share * (1.0 - share) * steep
    da = (dy * b * slope).to(loaded.dtype)
    db = (dy * (a * share)).to(loaded.dtype)
    tl.store(da_ptr + row * da_stride + at, da, mask=inside)
    tl.store(db_ptr + row * db_stride + at, db, mask=inside)


class _Glu(torch.autograd.Function):
    """Rows in, rows out; backward keeps the two inputs alone."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, activation: Activation) -> Tensor:
        rows, width = a.shape
        y = torch.empty((rows, width), dtype=a.dtype, device=a.device)
        _launch(_forward, (a, b, y), activation)
        ctx.save_for_backward(a, b)
        ctx.activation = activation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        rows, width = a.shape
        da, db = (torch.empty((rows, width), dtype=a.dtype, device=a.device) for _ in range(2))
        _launch(_backward, (launch.as_rows(dy), a, b, da, db), ctx.activation)
        return da, db, None


def _launch(function: Any, tensors: tuple[Tensor, ...], activation: Activation) -> None:
    """One program for `BLOCK` columns of a row; every tensor (rows, width)."""
    rows, width = tensors[0].shape
    if not tensors[0].numel():
        return
    block = min(BLOCK, launch.power_of_two(width))
    arguments = [part for tensor in tensors for part in (tensor, tensor.stride(0))]
    with launch.on_device_of(tensors[0]):
        launch.compiled(function)[(rows, -(-width // block))](
            *arguments,
            width,
            ACTIVATION=activation,
            BLOCK=block,
            num_warps=launch.warps(block),
        )


def _glu(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    check(gate, up)
    return _Glu.apply(launch.as_rows(gate), launch.as_rows(up), activation).view(gate.shape)


def swiglu_triton(gate: Tensor, up: Tensor) -> Tensor:
    """`swiglu_reference` as Triton kernels; dtypes as in `launch.DTYPES`."""
    return _glu(gate, up, "silu")


def geglu_triton(gate: Tensor, up: Tensor, *, tanh: bool = True) -> Tensor:
    """`geglu_reference` as Triton kernels; dtypes as in `launch.DTYPES`."""
    return _glu(gate, up, "gelu_tanh" if tanh else "gelu")
