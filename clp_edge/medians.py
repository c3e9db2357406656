"""The median and its interval, without torch: whoever draws or decides on speeds needs no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A median with the ends of its confidence interval and the number of samples behind it."""

    median: float
    low: float
    high: float
    n: int
    confidence: float
    """how often such an interval holds the true median, at least: what was attained, not asked"""


def median_interval(samples: Sequence[float] | np.ndarray, *, confidence: float = 0.95) -> Interval:
    """The median between two order statistics, by the sign test.

    Of n independent samples, the number below the true median is Binomial(n, 1/2), whatever their
    distribution, so the k-th smallest and the k-th largest hold it between them with probability
    1 - 2 P(Binomial(n, 1/2) < k) at least (Conover, Practical Nonparametric Statistics, 3.2). The
    largest k that attains `confidence` is taken. Where none does (for 95 %: fewer than 6 samples)
    the interval is the smallest and the largest sample, and its `confidence` says what that
    attains: 94 % of 5, 88 % of 4, 75 % of 3, 50 % of 2, nothing of 1. A percentile bootstrap of
    so few covers far less than it says.

    Raises ValueError without samples.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = int(ordered.size)
    if n == 0:
        raise ValueError("no samples")
    rank, attained = 1, attained_confidence(n, 1)
    while 2 * (rank + 1) <= n and (next_one := attained_confidence(n, rank + 1)) >= confidence:
        rank, attained = rank + 1, next_one
    return Interval(
        median=float(np.median(ordered)),
        low=float(ordered[rank - 1]),
        high=float(ordered[n - rank]),
        n=n,
        confidence=attained,
    )


def attained_confidence(n: int, rank: int) -> float:
    """1 - 2 P(Binomial(n, 1/2) < rank): what the rank-th smallest and largest of n hold.

    >>> attained_confidence(6, 1), attained_confidence(5, 1)
    (0.96875, 0.9375)
    """
    return 1.0 - 2.0 * sum(math.comb(n, below) for below in range(rank)) / 2.0**n
