"""The closed-form refit of the block before the cut (METHODS: ridge on its last matrix).

Block s-1 ends with out = u + r·(W m + b): u the residual after attention, m the MLP intermediate,
r the family's residual multiplier. After the cut its output should be what block s+n was used to
read, h_{s+n}. With D the change of W and e = h_{s+n} - h_s the gap that the cut opens,

    minimise over D   sum_t w_t ||e_t - r·D m_t||² + lambda ||D||²,   w_t = 1 / ||h_{s+n,t}||²,

solved in float64 from two Gram sums that are streamed over the text:
D = r·B (r²·A + lambda I)^-1 with A = sum w m mᵀ, B = sum w e mᵀ. lambda is given relative to the
mean diagonal of r²·A. The weights w keep the massive-activation tokens (pitfall 7: the first
position, a hundred times the median norm) in the fit without letting them rule it; leaving them
out destroys the model, and weighing them fully makes it worse.

Where a norm stands between the MLP and the residual stream (Gemma, OLMo 2), what is added is
gain·z, z the normalised MLP output, and the same problem for a change delta of the gain splits
into one for each dimension j:

    delta_j = sum w e_j z_j / (sum w z_j² + lambda).

The map that ReplaceMe (arXiv 2505.02819) folds into W is a special case of D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clp_edge.errors import ClpEdgeError
from clp_edge.heal.ranks import Ranks
from clp_edge.heal.ridge import choose_ridge
from clp_edge.heal.rung import Job, Mended, Rung
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress
from clp_edge.segment import Segment


def _products(*tensors: Tensor) -> list[Tensor]:
    """In float32 at least: what autocast leaves is cast up before any sum."""
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _added(
    ranks: Ranks, sums: tuple[Tensor | None, ...], gap: float, tokens: int
) -> tuple[float, int]:
    """Add up the sums in place; the gap and the tokens of all processes."""
    counts = torch.tensor([gap, tokens], dtype=torch.float64)
    ranks.add([*(part for part in sums if part is not None), counts])
    return float(counts[0]), round(float(counts[1]))


@dataclass
class RefitSums:
    """Streamed sums: memory in the sizes of the matrix, not in tokens."""

    multiplier: float = 1.0
    gram: Tensor | None = field(default=None, repr=False)
    """A: (intermediate, intermediate) float64 in host memory; a batch's part is made in float32"""
    cross: Tensor | None = field(default=None, repr=False)
    """B: (hidden, intermediate) float64"""
    gap: float = 0.0
    """sum w ||e||², what the fit has to explain"""
    tokens: int = 0

    def add(self, inner: Tensor, at_cut: Tensor, target: Tensor) -> None:
        """One batch, flat: m (tokens, intermediate), h_s and h_{s+n} (tokens, hidden)."""
        m, before, goal = _products(inner, at_cut, target)
        e = goal - before
        root = goal.square().sum(dim=-1, keepdim=True).clamp_min(1e-30).rsqrt()
        m, e = (root * m).to(e.dtype), root * e
        # 1.6 GB of an 8B model, and as much again to add to it: both in host memory.
        gram, cross = (m.T @ m).cpu().double(), (e.T @ m).cpu().double()
        self.gram = gram if self.gram is None else self.gram.add_(gram)
        self.cross = cross if self.cross is None else self.cross.add_(cross)
        self.gap += float(e.double().square().sum())
        self.tokens += len(m)

    def add_up(self, ranks: Ranks) -> None:
        """Become the sums over the text of all processes."""
        self.gap, self.tokens = _added(ranks, (self.gram, self.cross), self.gap, self.tokens)

    @property
    def finite(self) -> bool:
        """Whether the text left numbers."""
        return math.isfinite(self.gap) and all(
            bool(torch.isfinite(part).all()) for part in (self.gram, self.cross) if part is not None
        )

    def change(self, ridge: float) -> Tensor:
        """D (hidden, intermediate) float64 for a ridge relative to the mean diagonal."""
        if self.gram is None or self.cross is None:
            raise ClpEdgeError("the refit has seen no text")
        gram = self.multiplier**2 * self.gram
        size = gram.diagonal().mean() * ridge
        gram.diagonal().add_(size)
        factor = torch.linalg.cholesky(gram)
        return self.multiplier * torch.cholesky_solve(self.cross.T, factor).T

    def explained(self, change: Tensor) -> float:
        """R²: the share of the weighted gap that this change closes on the fitted text."""
        if self.gram is None or self.cross is None or self.gap == 0.0:
            return 0.0
        r = self.multiplier
        left = (
            self.gap
            - 2.0 * r * float((change * self.cross).sum())
            + r * r * float(((change @ self.gram) * change).sum())
        )
        return 1.0 - left / self.gap


@dataclass
class GainSums:
    """The same for the gain of a norm behind the MLP: a number a dimension."""

    eps: float
    power: Tensor | None = field(default=None, repr=False)
    """sum w z_j²: (hidden,) float64"""
    cross: Tensor | None = field(default=None, repr=False)
    """sum w e_j z_j: (hidden,) float64"""
    gap: float = 0.0
    """sum w ||e||²"""
    tokens: int = 0

    def add(self, inner: Tensor, at_cut: Tensor, target: Tensor) -> None:
        """One batch, flat: what the norm reads, h_s and h_{s+n}: (tokens, hidden) all."""
        x, before, goal = _products(inner, at_cut, target)
        z = x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        e = goal - before
        weight = 1.0 / goal.square().sum(dim=-1, keepdim=True).clamp_min(1e-30)
        power = (weight * z * z).sum(0, dtype=torch.float64)
        cross = (weight * e * z).sum(0, dtype=torch.float64)
        self.power = power if self.power is None else self.power + power
        self.cross = cross if self.cross is None else self.cross + cross
        self.gap += float((weight * e * e).sum(dtype=torch.float64))
        self.tokens += len(x)

    def add_up(self, ranks: Ranks) -> None:
        """Become the sums over the text of all processes."""
        self.gap, self.tokens = _added(ranks, (self.power, self.cross), self.gap, self.tokens)

    @property
    def finite(self) -> bool:
        """Whether the text left numbers."""
        return math.isfinite(self.gap) and all(
            bool(torch.isfinite(p).all()) for p in (self.power, self.cross) if p is not None
        )

    def change(self, ridge: float) -> Tensor:
        """delta (hidden,) float64 for a ridge relative to the mean of sum w z_j²."""
        if self.power is None or self.cross is None:
            raise ClpEdgeError("the refit has seen no text")
        return self.cross / (self.power + ridge * self.power.mean())

    def explained(self, change: Tensor) -> float:
        """R² as `RefitSums.explained` has it."""
        if self.power is None or self.cross is None or self.gap == 0.0:
            return 0.0
        won = 2.0 * float((change * self.cross).sum()) - float((change**2 * self.power).sum())
        return won / self.gap


class Refit(Rung):
    """The closed form, folded into the last weights of the block before the cut."""

    name = "refit"
    noun = "refit"

    def refuses(self, body: Anatomy, segment: Segment) -> str | None:
        if segment.first == 0:
            return "the cut begins at block 0, and there is no block before it"
        return body.family.no_refit or None

    def watch(self, body: Anatomy, segment: Segment) -> RefitSums | GainSums:
        if not body.family.norm_after_mlp:
            return RefitSums(body.residual_multiplier)
        norm: Any = body.submodule(segment.first - 1, body.family.mlp_branch)
        eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
        return GainSums(float(eps))

    def mend(self, job: Job, progress: Progress) -> Mended:
        """Facts: the ridge of least held-back KL, the R² that it has on the fitted text, and KL by
        every lambda that was tried; none where the text left no numbers."""
        tail, sums = job.tail, job.watchers[self.name]
        assert isinstance(sums, RefitSums | GainSums)
        if not sums.finite:
            return Mended(None)
        block = tail.trained[tail.segment.first - 1]
        weight = block.get_submodule(tail.body.family.before_residual).get_parameter("weight")
        original = weight.detach().clone()
        found = choose_ridge(
            job,
            weight.detach(),
            lambda ridge: original + sums.change(ridge).to(original),
            noun=self.noun,
            progress=progress,
        )
        if found.judged is None:
            return Mended(None)
        assert sums.cross is not None  # judged: so there were sums
        explained = sums.explained((weight.detach() - original).to(sums.cross))
        return Mended(found.judged, {**found.facts, "explained": explained})


REFIT = Refit()
