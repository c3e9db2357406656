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

Everything runs in chunks of positions: `chunk` x vocabulary scores are held, and no more. On CUDA
one Triton kernel takes a row of scores to its number and to what the second product needs, in
place (`kernels.head_rows`); elsewhere torch does.

Precision. A row is 49,000 numbers or more, most of them tiny, so sums over it go through
`Tensor.sum`, which adds in a tree: einsum adds one after the other and lost 1.65e-3 nats. In half
precision the logits, p and m are float32 all the same, made from the half-precision states and
weights. Demo model in bfloat16, blocks 13-18 out, against float64 from the same values: with
bfloat16 logits or a bfloat16 m the mean KL of 0.800 is 0.8e-3 to 1.0e-3 too low and one token is
off by 0.05 to 0.08; with both in float32, 2.5e-6 and 4e-5. Only the gradient may use bfloat16
products: a step bears the noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clp_edge.kernels import dispatch

CHUNK_ELEMENTS = 16 * 1024 * 1024
"""Logits held at once, and weights made float32 at once: 64 MiB."""
CUDA_CHUNK_ELEMENTS = 64 * 1024 * 1024
"""Logits held at once on a GPU, whose products with the head want 512 rows of 128,000 columns: 128
MiB in half precision. A quarter of the rows would read the head as often as it computes with it."""


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
        """(..., hidden) after the final norm -> (..., vocabulary) in the model's own dtype."""
        return self._finished(torch.nn.functional.linear(hidden, self.weight, self.bias))

    def scores(self, hidden: Tensor) -> Tensor:
        """The same logits in float32, whatever the dtype of the states and weights."""
        return self._finished(self.products(hidden))

    def products(self, hidden: Tensor) -> Tensor:
        """W h + b in float32, whatever the dtype of the states and weights."""
        if self.weight.dtype == torch.float32:
            return torch.nn.functional.linear(hidden.float(), self.weight, self.bias)
        states = hidden.float()
        parts = [states @ weight.T for _, weight in self._slabs()]
        scores = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return scores if self.bias is None else scores + self.bias.float()

    def pull(self, probabilities: Tensor) -> Tensor:
        """Wᵀp in float32: (tokens, vocabulary) float32 -> (tokens, hidden)."""
        if self.weight.dtype == torch.float32:
            return probabilities @ self.weight
        pulled = probabilities.new_zeros(len(probabilities), self.weight.shape[1])
        for part, weight in self._slabs():
            pulled.addmm_(probabilities[:, part], weight)
        return pulled

    def _slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """The weight in float32, a part of the vocabulary at a time."""
        rows = max(1, CHUNK_ELEMENTS // self.weight.shape[1])
        for start in range(0, self.vocabulary, rows):
            part = slice(start, min(start + rows, self.vocabulary))
            yield part, self.weight[part].float()

    def _finished(self, scores: Tensor) -> Tensor:
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
        elements = CUDA_CHUNK_ELEMENTS if self.weight.is_cuda else CHUNK_ELEMENTS
        return max(1, elements // self.vocabulary)


@dataclass(frozen=True)
class Teacher:
    """What is kept of the dense model per token; index it by tokens with `select`."""

    offset: Tensor
    """(tokens,) float32: sum_v p_v z_v - lse(z), less what the bias adds to sum_v p_v z'_v."""
    expected: Tensor
    """(tokens, hidden) float32: scale·Wᵀp; with a soft cap the dense final hidden state itself, in
    the model's dtype."""

    def __len__(self) -> int:
        return len(self.offset)

    def select(self, index: Any) -> Teacher:
        """The rows of these tokens (a slice or an index tensor)."""
        return Teacher(self.offset[index], self.expected[index])

    @classmethod
    def cat(cls, parts: Sequence[Teacher]) -> Teacher:
        """One after the other."""
        return cls(
            torch.cat([part.offset for part in parts]), torch.cat([part.expected for part in parts])
        )


def token_rows(sequences: Tensor, tokens: int) -> Tensor:
    """The flat token rows of these sequences of `tokens` tokens each, for `Teacher.select`."""
    within = torch.arange(tokens, device=sequences.device)
    return (sequences[:, None] * tokens + within).flatten()


@torch.no_grad()
def teacher(head: Head, dense_hidden: Tensor, *, chunk: int | None = None) -> Teacher:
    """What is kept of the dense model: dense_hidden (tokens, hidden) after the final norm."""
    if head.softcap is not None:
        return Teacher(dense_hidden.new_zeros(len(dense_hidden), dtype=torch.float32), dense_hidden)
    offset = torch.empty(len(dense_hidden), dtype=torch.float32, device=dense_hidden.device)
    expected = torch.empty_like(dense_hidden, dtype=torch.float32)
    step = chunk or head.chunk()
    for start in range(0, len(dense_hidden), step):
        part = slice(start, min(start + step, len(dense_hidden)))
        scores = head.scores(dense_hidden[part])
        normaliser = torch.logsumexp(scores, dim=-1)
        probabilities = torch.exp(scores - normaliser[:, None])
        expected[part] = head.scale * head.pull(probabilities)
        if head.bias is not None:  # the part that the bias adds to z is the same for both models
            scores.sub_(head.bias.float(), alpha=head.scale)
        offset[part] = scores.mul_(probabilities).sum(-1) - normaliser
    return Teacher(offset, expected)


class _HeadKL(torch.autograd.Function):
    """Per-token KL; the gradient to the candidate's hidden state is made in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, offset: Tensor, expected: Tensor, head: Head, chunk: int
    ) -> Tensor:
        values = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        # Noise that a training step bears.
        fast = head.weight.dtype == torch.bfloat16 and hidden.dtype == torch.bfloat16
        gradient = torch.empty_like(hidden, dtype=torch.float32) if wanted else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, min(start + chunk, len(hidden)))
            if wanted and fast:
                scores = torch.nn.functional.linear(hidden[part], head.weight, head.bias)
            else:
                scores = head.products(hidden[part])
            how: dict[str, Any] = {"scale": head.scale, "softcap": head.softcap, "replace": wanted}
            if head.softcap is None:
                normaliser = dispatch.normalise_(scores, **how)
                cross = (hidden[part].float() * expected[part]).sum(-1)
                values[part] = offset[part] - cross + normaliser
            else:
                values[part] = dispatch.diverge_(head.products(expected[part]), scores, **how)
            if gradient is None:
                continue
            # What stands in the scores now is p', or the KL's gradient by them.
            pulled = (scores @ head.weight).float() if fast else head.pull(scores)
            if head.softcap is None:
                pulled = pulled.mul_(head.scale).sub_(expected[part])
            gradient[part] = pulled
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.dtype = hidden.dtype
        return values

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return ((gradient * upstream[0][:, None]).to(ctx.dtype), None, None, None, None)


def head_kl(head: Head, dense: Teacher, hidden: Tensor, *, chunk: int | None = None) -> Tensor:
    """KL(dense || candidate) per token in nats: (tokens,) float32, differentiable in `hidden`.

    Args: hidden (tokens, hidden), the candidate's state after the final norm; dense, the `teacher`
        of the same tokens under the same head. The head itself gets no gradient.
    """
    if len(dense) != len(hidden):
        raise ValueError(f"{len(hidden)} candidate tokens for {len(dense)} dense tokens")
    return _HeadKL.apply(hidden, dense.offset, dense.expected, head, chunk or head.chunk())


@torch.no_grad()
def head_nll(
    head: Head, dense: Teacher, hidden: Tensor, targets: Tensor, *, kl: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood of the next tokens, nats: (tokens,) float32.

    With KL known, lse(z') = KL - offset + h'·m needs no pass over the vocabulary, and what is left
    is one row of W for each token. A soft cap has no such way, and its scores are made.

    Args: hidden (tokens, hidden), the candidate's after the final norm; targets (tokens,); kl
        (tokens,), what `head_kl` gave for the same, or None where hidden is the dense model's own.
    """
    values = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    if head.softcap is not None:
        for start in range(0, len(hidden), head.chunk()):
            part = slice(start, min(start + head.chunk(), len(hidden)))
            scores = head.scores(hidden[part])
            named = scores.gather(-1, targets[part, None])[:, 0]
            values[part] = torch.logsumexp(scores, dim=-1) - named
        return values
    named = (hidden.float() * head.weight[targets].float()).sum(-1)
    if head.bias is not None:
        named += head.bias[targets].float()
    normaliser = (hidden.float() * dense.expected).sum(-1) - dense.offset
    if kl is not None:
        normaliser += kl
    return normaliser - head.scale * named
