"""Each number against a plain float64 computation, or a value known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch

from clp_edge.metrics import (
    bootstrap_median,
    mean_and_standard_error,
    perplexity,
    token_kl,
    token_nll,
    top1_agreement,
)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_token_kl_against_float64() -> None:
    p, q = logits(0, 5, 123), logits(1, 5, 123)
    log_p = scipy.special.log_softmax(p.double().numpy(), axis=-1)
    log_q = scipy.special.log_softmax(q.double().numpy(), axis=-1)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    np.testing.assert_allclose(token_kl(p, q).numpy(), expected, rtol=1e-5)


def test_token_kl_has_a_direction_and_a_zero() -> None:
    p, q = logits(0, 1, 50), logits(1, 1, 50)
    assert token_kl(p, p).item() == pytest.approx(0.0, abs=1e-6)
    assert token_kl(p, q).item() != pytest.approx(token_kl(q, p).item(), rel=1e-2)
    # KL((1/2, 1/2) || (1/4, 3/4)) = 0.5 ln(2) + 0.5 ln(2/3)
    half, quarter = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert token_kl(half, quarter).item() == pytest.approx(expected, rel=1e-6)


def test_token_kl_of_half_precision_is_computed_in_float32() -> None:
    p, q = logits(0, 3, 400).bfloat16(), logits(1, 3, 400).bfloat16()
    assert torch.equal(token_kl(p, q), token_kl(p.float(), q.float()))


def test_token_nll_against_float64() -> None:
    values = logits(2, 7, 31)
    targets = torch.tensor([0, 30, 4, 4, 9, 17, 2])
    log_p = scipy.special.log_softmax(values.double().numpy(), axis=-1)
    expected = -log_p[np.arange(7), targets.numpy()]
    np.testing.assert_allclose(token_nll(values, targets).numpy(), expected, rtol=1e-5)


def test_top1_agreement() -> None:
    p = torch.tensor([[1.0, 2.0, 0.0], [5.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    q = torch.tensor([[0.0, 9.0, 8.0], [1.0, 2.0, 0.0], [0.0, 0.5, 0.6]])
    assert top1_agreement(p, q).tolist() == [1.0, 0.0, 1.0]


def test_mean_and_standard_error() -> None:
    mean, error = mean_and_standard_error([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert error == pytest.approx(math.sqrt(7 / 3) / math.sqrt(3))
    assert math.isnan(mean_and_standard_error([3.0])[1])
    with pytest.raises(ValueError, match="no values"):
        mean_and_standard_error([])


def test_perplexity_and_its_error() -> None:
    value, error = perplexity([math.log(10.0), math.log(40.0)])
    assert value == pytest.approx(20.0)
    # the mean NLL's error is |ln 40 - ln 10| / 2 = ln 2
    assert error == pytest.approx(20.0 * math.log(2.0))


def test_bootstrap_median() -> None:
    samples = np.random.default_rng(3).normal(10.0, 1.0, size=101)
    interval = bootstrap_median(samples)
    assert interval.median == pytest.approx(float(np.median(samples)))
    assert interval.n == 101
    assert interval.low < interval.median < interval.high
    # the median's error at n = 101 is about 1.2533 / sqrt(101) = 0.125
    assert 0.25 < interval.high - interval.low < 0.8
    wider = bootstrap_median(samples, confidence=0.999)
    assert wider.low <= interval.low <= interval.high <= wider.high
    assert bootstrap_median(samples) == interval


def test_bootstrap_of_one_sample_is_that_sample() -> None:
    interval = bootstrap_median([7.0])
    assert (interval.median, interval.low, interval.high, interval.n) == (7.0, 7.0, 7.0, 1)
    with pytest.raises(ValueError, match="no samples"):
        bootstrap_median([])
