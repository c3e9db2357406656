"""KL(dense || candidate) from hidden states, without the logits of both models ever being held.

Both models share the head z = W h (weight (vocabulary, hidden), plus a bias, a scale, a soft cap).
With p the dense model's next-token distribution and z, z' the two models' logits,

    KL = sum_v p_v (log p_v - log p'_v) = [sum_v p_v z_v - lse(z)] - sum_v p_v z'_v + lse(z').

Where the logits are linear in h, sum_v p_v z'_v = h'·m + const with m = Wᵀp, the head's expected
row. So the dense model enters through two things per token only: a number and the vector m. They
are computed once (`teacher`), take no more memory than a hidden state, and every candidate after
that costs one product with W and one log-sum-exp, exactly, with no top-k. The gradient is
Wᵀ(p' - p) = Wᵀp' - m: a second product. With a soft cap the logits are not linear, and the dense
final hidden state is kept in place of m.

Everything runs in chunks of positions: `chunk` x vocabulary floats are held, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 16 * 1024 * 1024
"""Logits held at once: 64 MiB in float32."""


@dataclass(frozen=True)
class Head:
    """The head as tensors: z = scale·(W h + b), then c·tanh(z / c) where a soft cap c is set."""

    weight: Tensor
    """(vocabulary, hidden)"""
    bias: Tensor | None = None
    """(vocabulary,)"""
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden) after the final norm -> (..., vocabulary)."""
        scores = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1.0:
            scores = scores * self.scale
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        return scores

    @property
    def vocabulary(self) -> int:
        return int(self.weight.shape[0])

    def chunk(self) -> int:
        """Positions whose logits are held at once."""
        return max(1, CHUNK_ELEMENTS // self.vocabulary)


@dataclass(frozen=True)
class Teacher:
    """What is kept of the dense model per token; index it by tokens with `select`."""

    offset: Tensor
    """(tokens,) float32: sum_v p_v z_v - lse(z), less what the bias adds to sum_v p_v z'_v."""
    expected: Tensor
    """(tokens, hidden): scale·Wᵀp; with a soft cap the dense final hidden state itself."""

    def __len__(self) -> int:
        return len(self.offset)

    def select(self, index: Any) -> Teacher:
        """The rows of these tokens (a slice or an index tensor)."""
        return Teacher(self.offset[index], self.expected[index])


@torch.no_grad()
def teacher(head: Head, dense_hidden: Tensor, *, chunk: int | None = None) -> Teacher:
    """What is kept of the dense model: dense_hidden (tokens, hidden) after the final norm."""
    if head.softcap is not None:
        return Teacher(dense_hidden.new_zeros(len(dense_hidden), dtype=torch.float32), dense_hidden)
    offset = torch.empty(len(dense_hidden), dtype=torch.float32, device=dense_hidden.device)
    expected = torch.empty_like(dense_hidden)
    step = chunk or head.chunk()
    for start in range(0, len(dense_hidden), step):
        part = slice(start, min(start + step, len(dense_hidden)))
        scores = head.logits(dense_hidden[part]).float()
        normaliser = torch.logsumexp(scores, dim=-1)
        probabilities = torch.exp(scores - normaliser[:, None])
        own = torch.einsum("tv,tv->t", probabilities, scores)
        if head.bias is not None:
            own = own - head.scale * (probabilities @ head.bias.float())
        offset[part] = own - normaliser
        expected[part] = head.scale * (probabilities.to(head.weight.dtype) @ head.weight)
    return Teacher(offset, expected)


class _HeadKL(torch.autograd.Function):
    """Per-token KL; the gradient to the candidate's hidden state is made in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, offset: Tensor, expected: Tensor, head: Head, chunk: int
    ) -> Tensor:
        values = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, min(start + chunk, len(hidden)))
            scores = head.logits(hidden[part]).float()
            if head.softcap is None:
                normaliser = torch.logsumexp(scores, dim=-1)
                cross = torch.einsum("th,th->t", hidden[part].float(), expected[part].float())
                values[part] = offset[part] - cross + normaliser
                if gradient is not None:
                    scores.sub_(normaliser[:, None]).exp_()
                    pulled = scores.to(head.weight.dtype) @ head.weight
                    gradient[part] = (head.scale * pulled - expected[part]).to(gradient.dtype)
            else:
                dense = torch.log_softmax(head.logits(expected[part]).float(), dim=-1)
                candidate = torch.log_softmax(scores, dim=-1)
                values[part] = (dense.exp() * (dense - candidate)).sum(-1)
                if gradient is not None:
                    slope = 1.0 - (scores / head.softcap) ** 2  # d tanh
                    pulled = (candidate.exp() - dense.exp()) * slope * head.scale
                    gradient[part] = pulled.to(head.weight.dtype) @ head.weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0][:, None].to(gradient.dtype), None, None, None, None)


def head_kl(head: Head, dense: Teacher, hidden: Tensor, *, chunk: int | None = None) -> Tensor:
    """KL(dense || candidate) per token in nats: (tokens,) float32, differentiable in `hidden`.

    Args: hidden (tokens, hidden), the candidate's state after the final norm; dense, the `teacher`
        of the same tokens under the same head. The head itself gets no gradient.
    """
    if len(dense) != len(hidden):
        raise ValueError(f"{len(hidden)} candidate tokens for {len(dense)} dense tokens")
    return _HeadKL.apply(hidden, dense.offset, dense.expected, head, chunk or head.chunk())
