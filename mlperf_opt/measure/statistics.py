"""Intervals, early stopping and flips: what a number is worth."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959964  # quantile of the normal distribution for a 95 % interval
_RESAMPLES = 2000
_CHUNK = 1 << 21  # resampled values held at once: 16 MB of float64


def wilson_interval(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, both ends within 0..1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927). Unlike
    the normal interval it stays within 0..1 and has a width even where all or none succeed.

    Args:
        successes: how many of ``n`` trials succeeded.
        n: number of trials.
        z: quantile of the normal distribution; 1.959964 gives 95 %.

    Raises:
        ValueError: no trials, or ``successes`` outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes}, n={n}: expected 0 <= successes <= n and n >= 1")
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at the ends the formula is exactly 0 and 1, its rounding is not
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return low, high


@lru_cache(maxsize=256)
def late_queries(n: int, percentile: float, confidence: float = 0.99) -> int | None:
    """Return the largest t with P(Binomial(n, 1 - percentile) <= t) <= 1 - confidence, None where there is no t >= 1.

    If the true share of queries on time were exactly ``percentile``, seeing only t late ones would be that unlikely; so
    the t-th slowest latency bounds the percentile with this confidence.

    Source: MLPerf inference rules, appendix "Early stopping criterion", with tolerance 0, as LoadGen computes it.
    """
    if not (0 < percentile < 1 and 0 < confidence < 1):
        raise ValueError(f"percentile={percentile}, confidence={confidence}: expected both between 0 and 1")
    if n < 1:
        return None
    late = 1 - percentile
    # The sum passes 1 % before the mean (where it is about one half), so that is as far as terms are needed.
    k = np.arange(1, math.ceil(n * late) + 2, dtype=np.float64)
    k = k[k <= n]
    log_term = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k) + math.log(late / percentile))])
    log_cdf = np.logaddexp.accumulate(log_term + n * math.log(percentile))
    t = int(np.searchsorted(log_cdf, math.log(1 - confidence), side="right")) - 1
    return t if t >= 1 else None


@lru_cache(maxsize=64)
def minimum_queries(percentile: float, confidence: float = 0.99) -> int:
    """Return the fewest queries for which `early_stopping_estimate` gives a number (64 for p90, 662 for p99)."""
    low, high = 1, 2
    while late_queries(high, percentile, confidence) is None:
        low, high = high, high * 2
    while high - low > 1:  # late_queries(low) is None, late_queries(high) is not
        middle = (low + high) // 2
        low, high = (middle, high) if late_queries(middle, percentile, confidence) is None else (low, middle)
    return high


def early_stopping_estimate(latencies: ArrayLike, percentile: float, confidence: float = 0.99) -> float | None:
    """Return LoadGen's early-stopping estimate of a latency percentile, in the unit of ``latencies``.

    An upper bound: the true percentile is below it with the given confidence, if queries are independent. It reads a
    higher rank when there are few queries (the 97th percentile for p90 at n=100) and is None when there are too few.

    Args:
        latencies: (n,) of queries, in any order.
        percentile: 0.9 for p90.
        confidence: 0.99 as in MLPerf.

    Raises:
        ValueError: a latency is negative or not finite.
    """
    values = np.asarray(latencies, dtype=np.float64)
    if not np.all(np.isfinite(values) & (values >= 0)):
        raise ValueError("latencies must be finite and not negative")
    late = late_queries(values.size, percentile, confidence)
    if late is None:
        return None
    rank = values.size - late
    return float(np.partition(values, rank)[rank])


def median_ratio_interval(ratios: ArrayLike, seed: int) -> tuple[float, float, float]:
    """Return (median, low, high): the median of ratios with its 95 % percentile-bootstrap interval.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979); 2000 resamples.

    Args:
        ratios: (n,) positive ratios, one per window.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: no ratios, or one that is not positive and finite.
    """
    values = np.asarray(ratios, dtype=np.float64)
    if values.size == 0 or not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError("ratios must be positive and finite, and at least one")
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // values.size)
    medians = [
        np.median(values[rng.integers(0, values.size, (min(step, _RESAMPLES - start), values.size))], axis=1)
        for start in range(0, _RESAMPLES, step)
    ]
    low, high = np.percentile(np.concatenate(medians), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def flips(before: NDArray[Any], after: NDArray[Any]) -> tuple[int, int]:
    """Return (fixed, broken): samples wrong before and right after, and right before and wrong after.

    Two models may have equal accuracy and still answer differently; this counts it.

    Args:
        before: (n,) bool, True where the first model is right.
        after: (n,) bool, the same samples in the same order.

    Raises:
        ValueError: the shapes differ, or the arrays are not bool.
    """
    if before.shape != after.shape or before.dtype != np.bool_ or after.dtype != np.bool_:
        raise ValueError(
            f"expected two bool arrays of one shape, got {before.dtype}{before.shape}, {after.dtype}{after.shape}"
        )
    return int(np.sum(~before & after)), int(np.sum(before & ~after))
