"""KL, perplexity and top-1 agreement: arrays in, numbers out.

All logarithms are natural: KL and NLL are in nats. KL is always KL(dense || candidate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
