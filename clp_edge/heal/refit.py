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

from dataclasses import dataclass, field

import torch
from torch import Tensor

from clp_edge.errors import ClpEdgeError

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
