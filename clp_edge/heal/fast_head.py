"""KL(dense || candidate) for gradients alone, by bfloat16 products: a training step's head.

kernels/head_kl.py is exact to 1e-6 nats and spends most of a CPU step on float32 work as wide as
the vocabulary. A step's gradient, Wᵀ(p' - p), bears noise: here scores, probabilities and both
products are bfloat16 (sums inside them float32), which takes a fifth of the time. What is reported
or chosen by never comes from here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clp_edge.kernels.head_kl import Head, Teacher

ROWS = 512
"""Positions whose scores are held at once."""


def is_fast(head: Head) -> bool:
    """Whether the head is a plain matrix; others go the exact way."""
    return head.bias is None and head.softcap is None


def _probabilities(weight: Tensor, scale: float, hidden: Tensor) -> tuple[Tensor, Tensor]:
    scores = hidden.to(weight.dtype) @ weight.T
    if scale != 1.0:
        scores.mul_(scale)
    return scores, torch.softmax(scores, dim=-1)


def _normaliser(scores: Tensor, probabilities: Tensor) -> Tensor:
    """log sum exp of each row, read off its largest entry."""
    top, place = scores.max(dim=-1, keepdim=True)
    return (top.float() - probabilities.gather(-1, place).float().log()).squeeze(-1)


@torch.no_grad()
def fast_teacher(weight: Tensor, scale: float, dense_hidden: Tensor) -> Teacher:
    """As kernels.head_kl.teacher: weight (vocabulary, hidden) in half precision, dense_hidden
    (tokens, hidden) after the final norm."""
    offsets, expected = [], []
    for hidden in dense_hidden.split(ROWS):
        scores, p = _probabilities(weight, scale, hidden)
        expected.append(scale * (p @ weight).float())
        offsets.append((p * scores).sum(-1, dtype=torch.float32) - _normaliser(scores, p))
    return Teacher(torch.cat(offsets), torch.cat(expected))


class _FastKL(torch.autograd.Function):
    """Per-token KL; the gradient to the candidate's hidden state is made in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, offset: Tensor, expected: Tensor, weight: Tensor, scale: float
    ) -> Tensor:
        values, gradients = [], []
        parts = zip(hidden.split(ROWS), offset.split(ROWS), expected.split(ROWS), strict=True)
        for state, constant, wanted in parts:
            scores, p = _probabilities(weight, scale, state)
            cross = (state.float() * wanted).sum(-1)
            values.append(constant - cross + _normaliser(scores, p))
            gradients.append((p @ weight).float().mul_(scale).sub_(wanted))
        ctx.save_for_backward(torch.cat(gradients))
        ctx.dtype = hidden.dtype
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return ((gradient * upstream[0][:, None]).to(ctx.dtype), None, None, None, None)


def fast_kl(weight: Tensor, scale: float, dense: Teacher, hidden: Tensor) -> Tensor:
    """(tokens,) float32 nats, differentiable in hidden (tokens, hidden); noisy by about 1e-2."""
    return _FastKL.apply(hidden, dense.offset, dense.expected, weight, scale)
