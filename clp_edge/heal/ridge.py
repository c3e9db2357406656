"""How far a closed form is held back: its lambda, chosen by KL on held-back text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clp_edge.heal.held import Judged
from clp_edge.heal.rung import Job
from clp_edge.progress import Progress
from clp_edge.records import measured

RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""lambda, relative to the mean diagonal of the weighted Gram."""
FIRST = RIDGES.index(0.01)
"""Where the search for the least begins; with much text the least is flat (docs/LOG.md)."""


@dataclass(frozen=True)
class ChosenRidge:
    """The lambda of least KL on held-back text."""

    ridge: float | None
    """None: none of them left numbers"""
    judged: Judged | None
    """the tail with it"""
    by_ridge: dict[str, float]
    """KL of every one that was tried and left a number, nats"""

    @property
    def facts(self) -> dict[str, float | dict[str, float] | None]:
        """As JSON values."""
        return {"ridge": self.ridge, "by_ridge": self.by_ridge}


@torch.no_grad()
def choose_ridge(
    job: Job, weight: Tensor, solve: Callable[[float], Tensor], *, noun: str, progress: Progress
) -> ChosenRidge:
    """Try lambdas on the tail of a job; its `weight` ends as the best, or as it was.

    Args:
        weight: of the tail, changed in place.
        solve: what it is to be for a lambda; torch.linalg.LinAlgError where there is too little
            text for so small a one.
        noun: of the rung, for the progress.
    """
    kl, judged, ridge, best = math.inf, None, None, weight.clone()
    tried: dict[float, float] = {}
    for one in downhill(tried):
        try:
            weight.copy_(solve(one))
        except torch.linalg.LinAlgError:
            tried[one] = math.inf
            continue
        job.ranks.level([weight])
        came = job.judge()
        after = tried[one] = came.kl
        progress(len(tried), len(RIDGES), f"{noun} with lambda {one:g}: KL {after:.3f}")
        if after < kl:  # NaN, where it overflowed, is not
            kl, judged, ridge, best = after, came, one, weight.clone()
    weight.copy_(best)
    curve = {one: measured(tried[one]) for one in sorted(tried)}
    return ChosenRidge(ridge, judged, {f"{x:g}": y for x, y in curve.items() if y is not None})


def downhill(tried: dict[float, float]) -> Iterator[float]:
    """Lambdas from the usual one down to smaller ones, then up, each way while KL falls.

    Args: tried, the KL of each that was given, which the caller fills in.
    """
    yield RIDGES[FIRST]
    for way in (range(FIRST - 1, -1, -1), range(FIRST + 1, len(RIDGES))):
        last = tried[RIDGES[FIRST]]
        for index in way:
            yield RIDGES[index]
            now = tried[RIDGES[index]]
            if not (now < last or not math.isfinite(last)):
                break
            last = now
        if last < tried[RIDGES[FIRST]]:
            break
