"""KL, perplexity, top-1 agreement and the median's interval: arrays in, numbers out.

All logarithms are natural: KL and NLL are in nats. KL is always KL(dense || candidate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def token_kl(dense_logits: Tensor, candidate_logits: Tensor) -> Tensor:
    """KL(dense || candidate) of each position, in nats.

    Args: logits (..., vocabulary), any floating dtype; computed in float32.
    Returns: (...), never below zero by more than rounding.
    """
    dense = torch.log_softmax(dense_logits.float(), dim=-1)
    candidate = torch.log_softmax(candidate_logits.float(), dim=-1)
    if torch.is_grad_enabled() and (dense.requires_grad or candidate.requires_grad):
        return (dense.exp() * (dense - candidate)).sum(dim=-1)
    gap = candidate.neg_().add_(dense)  # in place: these are as wide as the vocabulary
    # Tensor.sum adds in a tree; vecdot and einsum may add one after the other.
    return gap.mul_(dense.exp_()).sum(dim=-1)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target, in nats.

    Args: logits (tokens, vocabulary); targets (tokens,), already shifted by the caller.
    """
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def top1_agreement(dense_logits: Tensor, candidate_logits: Tensor) -> Tensor:
    """Whether both name the same most likely token, per position: (...) of 0.0 and 1.0."""
    return (dense_logits.argmax(dim=-1) == candidate_logits.argmax(dim=-1)).float()


def mean_and_standard_error(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean and its standard error (sample deviation / sqrt(n)); NaN error for one value."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("no values to average")
    if array.size == 1:
        return float(array[0]), math.nan
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(array.size))


def perplexity(sequence_nll: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """exp(mean NLL) with its standard error (delta method) from the mean NLL of equal sequences."""
    mean, error = mean_and_standard_error(sequence_nll)
    value = math.exp(mean)
    return value, value * error


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
