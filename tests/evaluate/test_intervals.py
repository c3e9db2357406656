"""Paired intervals hold what they say, are tighter than unpaired ones, and refuse too little."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from clp_edge.evaluate.intervals import (
    FEWEST,
    paired_interval,
    perplexity_ratio,
    rate,
    student_quantile,
)
from clp_edge.metrics import perplexity


def mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1)


def coverage(n: int, draw, truth: float, trials: int) -> tuple[float, float]:
    """How often our interval, and scipy's BCa, hold the true mean."""
    rng = np.random.default_rng(n)
    ours = theirs = 0
    for _ in range(trials):
        sample = draw(rng, n)
        found = paired_interval(mean, sample, resamples=1000)
        ours += found.low <= truth <= found.high
        other = scipy.stats.bootstrap(
            (sample,), np.mean, n_resamples=1000, vectorized=True, rng=rng
        ).confidence_interval
        theirs += other.low <= truth <= other.high
    return ours / trials, theirs / trials


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(0.2, 0.1, n)


@pytest.mark.parametrize(("n", "least"), [(5, 0.88), (8, 0.92), (32, 0.92)])
def test_coverage_is_what_is_said_and_no_less_than_scipys(n: int, least: float) -> None:
    """A bootstrap of 8 covers about 90 %, not 95: moving the ends out as t does mends that."""
    ours, theirs = coverage(n, normal, 0.2, trials=300)
    assert ours >= least
    assert ours >= theirs - 0.005
    assert ours <= 0.99


def test_coverage_of_a_skewed_sample() -> None:
    ours, theirs = coverage(16, lambda rng, n: rng.exponential(1.0, n), 1.0, trials=300)
    assert ours >= 0.90
    assert ours >= theirs - 0.005


def test_of_many_values_it_is_scipys_interval() -> None:
    sample = np.random.default_rng(3).exponential(1.0, 400)
    found = paired_interval(mean, sample)
    other = scipy.stats.bootstrap((sample,), np.mean, rng=0).confidence_interval
    assert found.low == pytest.approx(other.low, abs=0.01)
    assert found.high == pytest.approx(other.high, abs=0.01)
    assert found == paired_interval(mean, sample)  # the same every time


def test_the_paired_ratio_is_several_times_tighter_than_the_perplexities() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(3.4, 0.35, 32)
    after = before + rng.normal(0.25, 0.05, 32)
    ratio = perplexity_ratio(before, after)
    assert ratio.value == pytest.approx(perplexity(after)[0] / perplexity(before)[0], rel=1e-12)
    assert ratio.low < ratio.value < ratio.high
    reach = (ratio.high - ratio.low) / 2 / ratio.value
    value, error = perplexity(after)
    assert reach < 1.96 * error / value / 4
    assert perplexity_ratio(after, before).value == pytest.approx(1 / ratio.value)


def test_equal_models_have_a_ratio_of_exactly_one() -> None:
    found = perplexity_ratio([3.0, 2.0, 4.0, 5.0, 1.0], [3.0, 2.0, 4.0, 5.0, 1.0])
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_too_few_values_have_no_interval() -> None:
    found = perplexity_ratio([3.0] * (FEWEST - 1), [3.1, 3.2, 3.3, 3.1])
    assert found.value == pytest.approx(math.exp(0.175))
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_what_is_not_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="not paired"):
        paired_interval(lambda a, b: mean(a - b), [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not paired"):
        paired_interval(mean, [])


def test_a_ratio_over_nothing_leaves_an_end_infinite_not_a_number_made_up() -> None:
    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return above.mean(axis=-1) / below.mean(axis=-1)

    below = np.array([1.0, 0, 0, 0, 0, 0])
    found = paired_interval(ratio, np.full(6, 0.5), below)
    assert found.value == pytest.approx(3.0)
    assert math.isinf(found.high)


@pytest.mark.parametrize("freedom", [4, 7, 31])
def test_students_quantile(freedom: int) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(
        scipy.stats.t.ppf(0.975, freedom), rel=0.01
    )


@pytest.mark.parametrize(("passed", "total"), [(0, 4), (4, 4), (3, 4), (11, 24), (570, 570)])
def test_wilson(passed: int, total: int) -> None:
    found = rate(passed, total)
    expected = scipy.stats.binomtest(passed, total).proportion_ci(method="wilson")
    assert found.value == passed / total
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)


@pytest.mark.parametrize(("passed", "total"), [(1, 0), (5, 4), (-1, 4)])
def test_no_rate(passed: int, total: int) -> None:
    with pytest.raises(ValueError, match="no rate"):
        rate(passed, total)
