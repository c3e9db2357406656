"""KL, perplexity, top-1 agreement and the bootstrap: arrays in, numbers out.

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
    return torch.linalg.vecdot(dense.exp_(), gap)


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


def bootstrap_median(
    samples: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 9_999,
    seed: int = 0,
) -> Interval:
    """The median and its percentile-bootstrap interval; a lone sample is its own interval."""
    array = np.asarray(samples, dtype=np.float64)
    if array.size == 0:
        raise ValueError("no samples")
    median = float(np.median(array))
    if array.size == 1:
        return Interval(median, median, median, 1)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, array.size, size=(resamples, array.size))
    medians = np.median(array[draws], axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(medians, [tail, 1.0 - tail])
    return Interval(median, float(low), float(high), int(array.size))
