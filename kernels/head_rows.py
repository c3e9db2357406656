"""A row of logits becomes its log-sum-exp and, in place, what backward multiplies the head with.

A row is as wide as the vocabulary: scores s = W h + b as a matrix product leaves them, in float32
or half precision. The logits are z = scale·s, then c·tanh(z / c) where a soft cap c is set.

    normalise_   lse = log sum exp z;              s becomes p = exp(z - lse)
    diverge_     KL = sum_v p_v (z_v - z'_v) - lse + lse';
                                                   s' becomes (p' - p)·scale·(1 - (z'/c)²)

The second is for soft-capped heads, where both models' rows are needed; its result is the gradient
of the KL by the candidate's scores s'. The log-sum-exp is online: a lane keeps its own largest
logit and the sum relative to it, so a row is read once for the numbers and once more for what is
written over it, and nothing of the vocabulary's width is held besides. Sums are over lanes of a
block, then over the lanes: never one long chain of additions.

Moved per row of V: 1 read for the number alone, 2 reads and 1 write with the gradient; torch makes
at least 5 passes, and float32 copies of half-precision scores.

>>> lse = normalise_reference_(scores, scale=1.0, softcap=None, replace=True)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clp_edge.kernels import launch

if TYPE_CHECKING:
    import triton.language as tl

BLOCK = 4096
"""Columns that a program holds at once."""


def check(scores: Tensor, *others: Tensor) -> None:
    """Raises ValueError where rows do not fit together or cannot be written over."""
    if scores.dim() != 2 or not scores.is_contiguous() or scores.shape[1] == 0:
        raise ValueError(f"contiguous (rows, vocabulary) scores, not {tuple(scores.shape)}")
    for other in others:
        if other.shape != scores.shape or not other.is_contiguous():
            raise ValueError(f"rows of {tuple(other.shape)} for {tuple(scores.shape)}")


def finished(scores: Tensor, scale: float, softcap: float | None) -> Tensor:
    """The logits of these scores, in float32 at least; float32 scores are written over."""
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if scale != 1.0:
        logits.mul_(scale)
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def normalise_reference_(
    scores: Tensor, *, scale: float, softcap: float | None, replace: bool
) -> Tensor:
    """The log-sum-exp of each row's logits: (rows,), float32 at least.

    Args: scores (rows, vocabulary), which are lost; with `replace` they become the probabilities.
    """
    check(scores)
    logits = finished(scores, scale, softcap)
    normaliser = torch.logsumexp(logits, dim=-1)
    if replace:
        logits.sub_(normaliser[:, None]).exp_()
        if logits.dtype != scores.dtype:
            scores.copy_(logits)
    return normaliser


def diverge_reference_(
    dense: Tensor, scores: Tensor, *, scale: float, softcap: float | None, replace: bool
) -> Tensor:
    """KL(dense || candidate) of each row: (rows,), float32 at least.

    Args: dense and scores (rows, vocabulary), which are lost; with `replace` the candidate's become
        the gradient of the KL by them.
    """
    check(scores, dense)
    logits = finished(scores, scale, softcap)
    wanted = torch.log_softmax(finished(dense, scale, softcap), dim=-1)
    candidate = torch.log_softmax(logits, dim=-1)
    slope = None
    if replace:
        slope = candidate.exp().sub_(wanted.exp()).mul_(scale)
        if softcap is not None:
            slope.mul_(logits.div_(softcap).square_().neg_().add_(1.0))  # d tanh
    divergence = candidate.neg_().add_(wanted).mul_(wanted.exp_()).sum(-1)
    if slope is not None:
        scores.copy_(slope)
    return divergence


def _normalise(
    s_ptr,
    s_stride,
    lse_ptr,
    scale,
    softcap,
    WIDTH: tl.constexpr,
    CAPPED: tl.constexpr,
    REPLACE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    # Finite, so that lanes outside (minus infinity) never meet infinity minus infinity.
    top = tl.full((BLOCK,), -1.0e30, dtype=tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < WIDTH
        z = tl.load(s_ptr + row * s_stride + at, mask=inside, other=0.0).to(tl.float32) * scale
        if CAPPED:
            z = softcap * (2.0 / (1.0 + tl.exp(-2.0 * z / softcap)) - 1.0)
        z = tl.where(inside, z, -float("inf"))
        higher = tl.maximum(top, z)
        total = total * tl.exp(top - higher) + tl.exp(z - higher)
        top = higher
    peak = tl.max(top, axis=0)
    lse = peak + tl.log(tl.sum(total * tl.exp(top - peak), axis=0))
    tl.store(lse_ptr + row, lse)
    if REPLACE:
        # Each lane reads again what it alone has read and now writes: no other is in its way.
        for start in range(0, WIDTH, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < WIDTH
            loaded = tl.load(s_ptr + row * s_stride + at, mask=inside, other=0.0)
            z = loaded.to(tl.float32) * scale
            if CAPPED:
                z = softcap * (2.0 / (1.0 + tl.exp(-2.0 * z / softcap)) - 1.0)
            tl.store(s_ptr + row * s_stride + at, tl.exp(z - lse).to(loaded.dtype), mask=inside)


def _diverge(
    d_ptr,
    d_stride,
    s_ptr,
    s_stride,
    kl_ptr,
    scale,
    softcap,
    WIDTH: tl.constexpr,
    CAPPED: tl.constexpr,
    REPLACE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d_top = tl.full((BLOCK,), -1.0e30, dtype=tl.float32)
    s_top = tl.full((BLOCK,), -1.0e30, dtype=tl.float32)
    d_total = tl.zeros((BLOCK,), dtype=tl.float32)
    s_total = tl.zeros((BLOCK,), dtype=tl.float32)
    pulled = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < WIDTH
        d = tl.load(d_ptr + row * d_stride + at, mask=inside, other=0.0).to(tl.float32) * scale
        z = tl.load(s_ptr + row * s_stride + at, mask=inside, other=0.0).to(tl.float32) * scale
        if CAPPED:
            d = softcap * (2.0 / (1.0 + tl.exp(-2.0 * d / softcap)) - 1.0)
            z = softcap * (2.0 / (1.0 + tl.exp(-2.0 * z / softcap)) - 1.0)
        gap = d - z
        d = tl.where(inside, d, -float("inf"))
        z = tl.where(inside, z, -float("inf"))
        higher = tl.maximum(d_top, d)
        shrink = tl.exp(d_top - higher)
        weight = tl.exp(d - higher)
        d_total = d_total * shrink + weight
        pulled = pulled * shrink + weight * gap
        d_top = higher
        higher = tl.maximum(s_top, z)
        s_total = s_total * tl.exp(s_top - higher) + tl.exp(z - higher)
        s_top = higher
    d_peak = tl.max(d_top, axis=0)
    s_peak = tl.max(s_top, axis=0)
    shrink = tl.exp(d_top - d_peak)
    mass = tl.sum(d_total * shrink, axis=0)
    d_lse = d_peak + tl.log(mass)
    s_lse = s_peak + tl.log(tl.sum(s_total * tl.exp(s_top - s_peak), axis=0))
    tl.store(kl_ptr + row, tl.sum(pulled * shrink, axis=0) / mass - d_lse + s_lse)
    if REPLACE:
        for start in range(0, WIDTH, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < WIDTH
            d = tl.load(d_ptr + row * d_stride + at, mask=inside, other=0.0).to(tl.float32) * scale
            loaded = tl.load(s_ptr + row * s_stride + at, mask=inside, other=0.0)
            z = loaded.to(tl.float32) * scale
            slope = scale
            if CAPPED:
                d = softcap * (2.0 / (1.0 + tl.exp(-2.0 * d / softcap)) - 1.0)
                bent = 2.0 / (1.0 + tl.exp(-2.0 * z / softcap)) - 1.0
                z = softcap * bent
                slope = scale * (1.0 - bent * bent)
            pull = (tl.exp(z - s_lse) - tl.exp(d - d_lse)) * slope
            tl.store(s_ptr + row * s_stride + at, pull.to(loaded.dtype), mask=inside)


def _constants(scores: Tensor, softcap: float | None, replace: bool) -> dict[str, int | bool]:
    block = min(BLOCK, launch.power_of_two(scores.shape[1]))
    return {
        "WIDTH": scores.shape[1],
        "CAPPED": softcap is not None,
        "REPLACE": replace,
        "BLOCK": block,
        "num_warps": launch.warps(block),
    }


def normalise_triton_(
    scores: Tensor, *, scale: float, softcap: float | None, replace: bool
) -> Tensor:
    """`normalise_reference_` as one Triton kernel; dtypes as in `launch.DTYPES`."""
    check(scores)
    normaliser = torch.empty(len(scores), dtype=torch.float32, device=scores.device)
    if len(scores):
        with launch.on_device_of(scores):
            launch.compiled(_normalise)[(len(scores),)](
                scores,
                scores.stride(0),
                normaliser,
                float(scale),
                float(softcap or 1.0),
                **_constants(scores, softcap, replace),
            )
    return normaliser


def diverge_triton_(
    dense: Tensor, scores: Tensor, *, scale: float, softcap: float | None, replace: bool
) -> Tensor:
    """`diverge_reference_` as one Triton kernel; dtypes as in `launch.DTYPES`."""
    check(scores, dense)
    divergence = torch.empty(len(scores), dtype=torch.float32, device=scores.device)
    if len(scores):
        with launch.on_device_of(scores):
            launch.compiled(_diverge)[(len(scores),)](
                dense,
                dense.stride(0),
                scores,
                scores.stride(0),
                divergence,
                float(scale),
                float(softcap or 1.0),
                **_constants(scores, softcap, replace),
            )
    return divergence
