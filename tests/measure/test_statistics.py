"""Intervals, early stopping and flips against published numbers, brute force and definitions."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.measure.statistics import (
    early_stopping_estimate,
    flips,
    late_queries,
    median_ratio_interval,
    minimum_queries,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_agrees_with_newcombes_table(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_ordered_contains_the_share_and_mirrors(case):
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        wilson_interval(successes, n)


@pytest.mark.parametrize(
    ("n", "percentile", "discarded"),
    # what LoadGen itself discarded
    [(66363, 0.9, 6455), (35764, 0.99, 313), (100, 0.9, 2), (64, 0.9, 0), (662, 0.99, 0)],
)
def test_early_stopping_discards_what_loadgen_discards(n, percentile, discarded):
    latencies = np.arange(n, dtype=np.float64)
    np.random.default_rng(0).shuffle(latencies)
    assert early_stopping_estimate(latencies, percentile) == n - 1 - discarded


@pytest.mark.parametrize(("n", "percentile"), [(0, 0.9), (1, 0.9), (63, 0.9), (661, 0.99)])
def test_early_stopping_gives_nothing_for_too_few(n, percentile):
    assert early_stopping_estimate(np.ones(n), percentile) is None


def test_minimum_queries_are_loadgens():
    assert [minimum_queries(p) for p in (0.5, 0.9, 0.95, 0.97, 0.99, 0.999)] == [11, 64, 130, 219, 662, 6636]


@pytest.mark.parametrize("percentile", [Fraction(1, 2), Fraction(9, 10), Fraction(99, 100)])
def test_early_stopping_agrees_with_exact_fractions(percentile):
    for n in range(1, 150, 7):
        cdf, expected = Fraction(0), None
        for t in range(n + 1):
            cdf += math.comb(n, t) * (1 - percentile) ** t * percentile ** (n - t)
            if cdf > Fraction(1, 100):
                break
            expected = t or None
        assert late_queries(n, float(percentile)) == expected, n


def test_early_stopping_approaches_the_percentile_and_is_fast():
    start = time.perf_counter()
    late = late_queries(5_000_000, 0.9)
    assert time.perf_counter() - start < 5
    # normal approximation: mean - 2.326 standard deviations
    assert late == pytest.approx(500_000 - 2.326 * math.sqrt(5_000_000 * 0.09), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_early_stopping_refuses_impossible_latencies(bad):
    with pytest.raises(ValueError, match="latencies must be finite"):
        early_stopping_estimate([1.0] * 100 + [bad], 0.9)


@pytest.mark.parametrize(("percentile", "confidence"), [(90, 0.99), (0.9, 1.0), (0.0, 0.99)])
def test_early_stopping_refuses_percent(percentile, confidence):
    with pytest.raises(ValueError, match="expected both between 0 and 1"):
        early_stopping_estimate([1.0] * 100, percentile, confidence)


def test_median_interval_of_equal_ratios_is_a_point():
    assert median_ratio_interval([2.0] * 7, seed=0) == (2.0, 2.0, 2.0)


def test_median_interval_agrees_with_order_statistics():
    ranks = np.arange(1, 102) / 100
    np.random.default_rng(1).shuffle(ranks)
    median, low, high = median_ratio_interval(ranks, seed=3)
    assert median == 0.51
    # the binomial interval of the median of 101: ranks 41 and 61
    assert low == pytest.approx(0.41, abs=0.02)
    assert high == pytest.approx(0.61, abs=0.02)


def test_median_interval_depends_on_the_seed_only():
    ratios = np.random.default_rng(0).uniform(0.9, 1.1, 40)
    assert median_ratio_interval(ratios, seed=5) == median_ratio_interval(ratios, seed=5)


def test_median_interval_resamples_long_inputs_in_parts():
    ratios = np.random.default_rng(0).uniform(0.9, 1.1, 30_000)
    median, low, high = median_ratio_interval(ratios, seed=5)
    # standard error of a median: 1 / (2 f sqrt(n)), f = 5
    assert high - low == pytest.approx(2 * 1.96 / (2 * 5 * math.sqrt(30_000)), rel=0.15)
    assert low < median < high


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [0.0], [-1.0], [math.inf]])
def test_median_interval_refuses_what_is_no_ratio(bad):
    with pytest.raises(ValueError, match="ratios must be positive"):
        median_ratio_interval(bad, seed=0)


def test_flips_count_each_way():
    before = np.array([True, True, False, False, True])
    after = np.array([True, False, True, True, True])
    assert flips(before, after) == (2, 1)


def test_flips_refuse_other_samples_and_logits():
    with pytest.raises(ValueError, match="expected two bool arrays of one shape"):
        flips(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(ValueError, match="expected two bool arrays of one shape"):
        flips(np.ones(3), np.ones(3))
