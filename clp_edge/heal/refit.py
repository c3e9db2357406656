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

The map that ReplaceMe (arXiv 2505.02819) folds into W is a special case of D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clp_edge.errors import ClpEdgeError
from clp_edge.heal.rung import Job, Mended, Rung
from clp_edge.models.anatomy import Anatomy
from clp_edge.progress import Progress
from clp_edge.segment import Segment

RIDGES = (0.01, 0.03, 0.1, 0.3)
"""lambda, relative to the mean diagonal of the weighted Gram; chosen on held-back text."""


@dataclass
class RefitSums:
    """Streamed sums: memory in the sizes of the matrix, not in tokens."""

    multiplier: float = 1.0
    gram: Tensor | None = field(default=None, repr=False)
    """A: (intermediate, intermediate) float64"""
    cross: Tensor | None = field(default=None, repr=False)
    """B: (hidden, intermediate) float64"""
    gap: float = 0.0
    """sum w ||e||², what the fit has to explain"""
    tokens: int = 0

    def add(self, inner: Tensor, at_cut: Tensor, target: Tensor) -> None:
        """One batch, flat: m (tokens, intermediate), h_s and h_{s+n} (tokens, hidden)."""
        m, goal = inner.double(), target.double()
        e = goal - at_cut.double()
        weight = 1.0 / goal.square().sum(dim=-1, keepdim=True).clamp_min(1e-30)
        weighted = weight * m
        gram, cross = m.T @ weighted, e.T @ weighted
        self.gram = gram if self.gram is None else self.gram + gram
        self.cross = cross if self.cross is None else self.cross + cross
        self.gap += float((weight * e * e).sum())
        self.tokens += len(m)

    def change(self, ridge: float) -> Tensor:
        """D (hidden, intermediate) float64 for a ridge relative to the mean diagonal."""
        if self.gram is None or self.cross is None:
            raise ClpEdgeError("the refit has seen no text")
        gram = self.multiplier**2 * self.gram
        size = gram.diagonal().mean() * ridge
        loaded = gram + size * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        factor = torch.linalg.cholesky(loaded)
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


class Refit(Rung):
    """The closed form, folded into the last matrix of the block before the cut."""

    name = "refit"
    noun = "refit"

    def refuses(self, body: Anatomy, segment: Segment) -> str | None:
        if segment.first == 0:
            return "the cut begins at block 0, and there is no block before it"
        if body.family.norm_after_mlp:
            return (
                f"in {body.family.model_type} a norm stands between the MLP's last matrix "
                "and the residual stream, so the closed form does not apply"
            )
        return None

    def watch(self, body: Anatomy, segment: Segment) -> RefitSums:
        return RefitSums(body.residual_multiplier)

    def mend(self, job: Job, progress: Progress) -> Mended:
        """Facts: the ridge of least held-back KL, and the R² that it has on the fitted text."""
        tail, sums = job.tail, job.watchers[self.name]
        assert isinstance(sums, RefitSums)
        block = tail.trained[tail.segment.first - 1]
        weight = block.get_submodule(tail.body.family.down_projection).get_parameter("weight")
        original = best = weight.detach().clone()
        kl, ridge, explained = math.inf, math.nan, 0.0
        for number, one in enumerate(RIDGES):
            change = sums.change(one)
            with torch.no_grad():
                weight.copy_(original + change.to(original.dtype))
            after = job.held_kl()
            progress(number + 1, len(RIDGES), f"refit with lambda {one:g}: KL {after:.3f}")
            if after < kl:  # NaN, where it overflowed, is not
                kl, ridge, explained = after, one, sums.explained(change)
                best = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(best)
        if not math.isfinite(kl):
            return Mended(math.inf)
        return Mended(kl, {"ridge": ridge, "explained": explained})


REFIT = Refit()
