from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from clp_edge.bench.statistics import coefficient_of_variation, paired_speedup, settled


def test_the_ratio_is_taken_round_by_round():
    before = [10.0, 20.0, 40.0]
    after = [12.0, 22.0, 60.0]  # ratios 1.2, 1.1, 1.5: medians alone would give 1.1
    found = paired_speedup(before, after)
    assert (found.before, found.after) == (20.0, 22.0)
    assert found.ratio.median == pytest.approx(1.2)
    assert (found.ratio.low, found.ratio.high, found.ratio.n) == (
        pytest.approx(1.1),
        pytest.approx(1.5),
        3,
    )


def test_pitfall_19_drift_that_hits_both_leaves_the_interval_tight():
    drift = np.linspace(1.0, 0.66, 12)  # heat takes a third
    found = paired_speedup(100.0 * drift, 115.0 * drift)
    assert found.ratio.low == pytest.approx(1.15)
    assert found.ratio.high == pytest.approx(1.15)


def test_milliseconds_that_fall_are_a_speedup_above_one():
    found = paired_speedup([200.0, 220.0], [100.0, 110.0], lower_is_better=True)
    assert found.ratio.median == pytest.approx(2.0)
    assert (found.before, found.after) == (210.0, 105.0)


def test_the_interval_of_the_ratio_says_what_it_attains():
    rng = np.random.default_rng(3)
    before = rng.normal(100.0, 4.0, size=25)
    after = rng.normal(118.0, 5.0, size=25)
    ratios = np.sort(after / before)
    found = paired_speedup(before, after).ratio
    # scipy.stats.binomtest counts samples below the median: 8 of 25 is the first that 95 % allow
    assert (found.low, found.high) == (ratios[7], ratios[17])
    assert found.confidence == pytest.approx(1.0 - 2.0 * binom.cdf(7, 25, 0.5))
    assert paired_speedup(before[:5], after[:5]).ratio.confidence == 0.9375


@pytest.mark.parametrize(
    ("before", "after"),
    [([], []), ([1.0], [1.0, 2.0]), ([1.0, 0.0], [1.0, 1.0]), ([1.0, math.nan], [1.0, 1.0])],
)
def test_rounds_that_do_not_pair_up_are_refused(before, after):
    with pytest.raises(ValueError, match=r"rounds|timing"):
        paired_speedup(before, after)


def test_settling_looks_at_the_last_runs_only():
    assert coefficient_of_variation([9.0, 11.0]) == pytest.approx(math.sqrt(2) / 10)
    assert coefficient_of_variation([5.0]) == math.inf
    assert not settled([100.0, 100.0])  # too few to say
    assert not settled([50.0, 90.0, 100.0])
    assert settled([10.0, 99.0, 100.0, 101.0])
