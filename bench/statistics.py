"""What may be said of repeated timings: medians, intervals, paired speed-ups, settling.

Dense and pruned run side by side in every round, so whatever slows a round (heat, a neighbour)
slows both: the speed-up is taken round by round, r_k = after_k / before_k, and its median and the
interval of it (two order statistics, `metrics.median_interval`) are those of the r_k. That is far
tighter than dividing two separate medians, and it does not need the rounds to be alike.

>>> paired_speedup([10.0, 20.0, 15.0], [12.0, 24.0, 18.0]).ratio.median
1.2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clp_edge.medians import Interval, median_interval

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Speedup:
    """Both medians and the interval of the per-round ratio; above 1 always means faster."""

    before: float
    after: float
    ratio: Interval


def paired_speedup(
    before: Sequence[float],
    after: Sequence[float],
    *,
    lower_is_better: bool = False,
    confidence: float = CONFIDENCE,
) -> Speedup:
    """The speed-up over rounds that belong together, one value a round in the same order.

    With `lower_is_better` (milliseconds) the ratio is before / after: above 1 is still faster.
    Raises ValueError when the rounds do not pair up or a value is not positive.
    """
    first = np.asarray(before, dtype=np.float64)
    second = np.asarray(after, dtype=np.float64)
    if first.size != second.size or first.size == 0:
        raise ValueError(f"rounds do not pair up: {first.size} before, {second.size} after")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a timing is not a finite number")
    if first.min() <= 0 or second.min() <= 0:
        raise ValueError("a timing is not positive")
    ratios = first / second if lower_is_better else second / first
    return Speedup(
        before=float(np.median(first)),
        after=float(np.median(second)),
        ratio=median_interval(ratios, confidence=confidence),
    )


def coefficient_of_variation(samples: Sequence[float]) -> float:
    """Sample standard deviation / mean; infinite for fewer than two samples (nothing is known)."""
    array = np.asarray(samples, dtype=np.float64)
    if array.size < 2 or array.mean() == 0:
        return float("inf")
    return float(array.std(ddof=1) / abs(array.mean()))


def settled(samples: Sequence[float], *, window: int = 3, limit: float = 0.05) -> bool:
    """Whether the last `window` samples agree within `limit` (coefficient of variation).

    One warm-up run is not enough (llama.cpp PR #21282 saw +-68 %): clocks, caches and page faults
    take a few runs to come to rest, and how many differs by device.
    """
    return len(samples) >= window and coefficient_of_variation(samples[-window:]) <= limit
