"""Interleaved timing of a candidate against a baseline, and of the baseline against itself.

On a shared machine the speed drifts by more than most optimizations gain. So the two are never timed one after the other:
they alternate in windows of about 2 ms (shorter where six rounds would take longer than the time given), each candidate
window is compared with the baseline window beside it, and a second baseline in the same rotation shows what a difference of
nothing looks like here and now.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import MlperfOptError
from mlperf_opt.measure.statistics import early_stopping_estimate, median_ratio_interval, minimum_queries
from mlperf_opt.settings import require

Call = Callable[[int], object]  # runs the query with this index (sample index % n)
Clock = Callable[[], float]  # nanoseconds, monotonic
Verdict = Literal["faster", "slower", "within noise"]

_WINDOW_NS = 2e6
_MAX_QUERIES = 1000  # a window of a very fast callable; keeps the draw of its queries short
_MIN_WARMUP = 3
_MIN_FACTOR = 1.02  # no claim below 2 %, however quiet the machine seems
_HARNESS_SHARE = 0.1
# All orders of (baseline, baseline again, candidate): nobody always runs first, or always behind the same neighbour.
_ORDERS = tuple(itertools.permutations(range(3)))


@dataclass(frozen=True, kw_only=True)
class PairTiming:
    """What `time_pair` measured. Latencies are the candidate's, in microseconds; ratios above 1 mean faster.

    Attributes:
        speedup: median over rounds of baseline window median / candidate window median.
        speedup_low, speedup_high: its 95 % bootstrap interval.
        noise_low, noise_high: the same interval for the baseline against itself.
        p50_us: median latency.
        p90_us, p99_us: early-stopping estimates, None with fewer than 64 and 662 queries.
        n: timed queries of the candidate.
        rounds: windows each.
        harness_us: median of a callable that does nothing, timed the same way; it is part of every latency.
        notes: why a number is missing or doubtful, one sentence each.
    """

    speedup: float
    speedup_low: float
    speedup_high: float
    noise_low: float
    noise_high: float
    p50_us: float
    p90_us: float | None
    p99_us: float | None
    n: int
    rounds: int
    harness_us: float
    notes: tuple[str, ...]


def time_pair(
    baseline: Call,
    candidate: Call,
    *,
    seconds: float,
    seed: int,
    warmup_seconds: float = 0.05,
    clock: Clock = time.perf_counter_ns,
) -> PairTiming:
    """Time ``candidate`` against ``baseline``; for the baseline's own row pass it twice.

    Both get the same queries, drawn at random as LoadGen does. At least six rounds run (one in each order), even where
    that takes longer than ``seconds``. The garbage collector rests meanwhile.

    Args:
        baseline: runs one query, given its index (any integer >= 0: the sample is index % n).
        candidate: the same.
        seconds: time to spend in rounds of three windows.
        seed: of the drawn queries and of the bootstrap.
        warmup_seconds: time each of the two runs before, not counted; at least three queries.
        clock: nanoseconds; replaced in tests.

    Raises:
        ConfigError: ``seconds`` is not positive, or ``warmup_seconds`` negative.
        MlperfOptError: the clock stands still, runs backwards or gives no number.
    """
    require(seconds > 0, "seconds", seconds, "more than 0")
    require(warmup_seconds >= 0, "warmup_seconds", warmup_seconds, "0 or more")
    rng = np.random.default_rng(seed)
    calls = (baseline, baseline, candidate)
    medians: list[list[float]] = [[], [], []]
    latencies: list[NDArray[np.float64]] = []
    with _no_garbage_collection():
        window_ns = min(_WINDOW_NS, seconds * 1e9 / (len(_ORDERS) * len(calls)))
        baseline_count = _queries_per_window(baseline, window_ns, warmup_seconds, clock)
        counts = (baseline_count, baseline_count, _queries_per_window(candidate, window_ns, warmup_seconds, clock))
        end = clock() + seconds * 1e9
        while clock() < end or len(latencies) < len(_ORDERS):
            queries = rng.integers(0, 2**31, max(counts)).tolist()
            order = _ORDERS[len(latencies) % len(_ORDERS)]
            windows = {which: _window(calls[which], queries[: counts[which]], clock) for which in order}
            for which, window in windows.items():
                medians[which].append(_positive_median(window))
            latencies.append(windows[2])
        _window(_nothing, range(_MAX_QUERIES), clock)
        harness_us = float(np.median(_window(_nothing, range(_MAX_QUERIES), clock))) / 1e3
    first, again, candidates = (np.array(values) for values in medians)
    speedup, speedup_low, speedup_high = median_ratio_interval(first / candidates, seed)
    _, noise_low, noise_high = median_ratio_interval(first / again, seed)
    all_us = np.concatenate(latencies) / 1e3
    p50_us = float(np.median(all_us))
    estimates = [early_stopping_estimate(all_us, percentile) for percentile in (0.9, 0.99)]
    return PairTiming(
        speedup=speedup,
        speedup_low=speedup_low,
        speedup_high=speedup_high,
        noise_low=noise_low,
        noise_high=noise_high,
        p50_us=p50_us,
        p90_us=estimates[0],
        p99_us=estimates[1],
        n=all_us.size,
        rounds=len(latencies),
        harness_us=harness_us,
        notes=_notes(all_us.size, p50_us, harness_us),
    )


def noise_factor(noise_low: float, noise_high: float) -> float:
    """Return the factor that a ratio must pass before it is called a difference: max(noise, 2 %), at least 1.02.

    Args:
        noise_low: lower end of the interval of the baseline against itself.
        noise_high: its upper end.

    Raises:
        ValueError: an end that is not a positive number.
    """
    if not (noise_low > 0 and noise_high > 0):  # also refuses NaN
        raise ValueError(f"noise {noise_low}..{noise_high}: expected positive numbers")
    return max(noise_high, 1 / noise_low, _MIN_FACTOR)


def verdict(speedup_low: float, speedup_high: float, noise_low: float, noise_high: float) -> Verdict:
    """Say "faster" or "slower" only where the whole interval of the speedup lies beyond max(noise, 2 %).

    Exchanging baseline and candidate exchanges the two words: the band is factor .. 1 / factor.

    Raises:
        ValueError: an end that is not a positive number.
    """
    if not 0 < speedup_low <= speedup_high:
        raise ValueError(f"speedup {speedup_low}..{speedup_high}: expected positive numbers in order")
    factor = noise_factor(noise_low, noise_high)
    if speedup_low > factor:
        return "faster"
    return "slower" if speedup_high < 1 / factor else "within noise"


def _window(call: Call, queries: Any, clock: Clock) -> NDArray[np.float64]:
    """Run the queries and return the latency of each in nanoseconds."""
    taken: list[float] = []
    for query in queries:
        start = clock()
        call(query)
        taken.append(clock() - start)
    window = np.array(taken, dtype=np.float64)
    if not np.all(np.isfinite(window) & (window >= 0)):
        raise MlperfOptError("cannot time: the clock runs backwards or gives no number")
    return window


def _queries_per_window(call: Call, window_ns: float, warmup_seconds: float, clock: Clock) -> int:
    """Warm up, and return how many queries make a window."""
    taken: list[float] = []
    end = clock() + warmup_seconds * 1e9
    while len(taken) < _MIN_WARMUP or clock() < end:
        taken.extend(_window(call, (len(taken),), clock))
        if len(taken) >= _MAX_QUERIES and not any(taken):
            raise MlperfOptError("cannot time: the clock stands still")
    typical = float(np.median(taken))
    return _MAX_QUERIES if typical == 0 else int(np.clip(window_ns / typical, 1, _MAX_QUERIES))


def _positive_median(window: NDArray[np.float64]) -> float:
    median = float(np.median(window))
    if median == 0:
        raise MlperfOptError("cannot time: a query is shorter than a tick of the clock; use a larger batch")
    return median


def _notes(n: int, p50_us: float, harness_us: float) -> tuple[str, ...]:
    notes = [
        f"{name} needs {minimum_queries(percentile)} queries, got {n}"
        for name, percentile in (("p90", 0.9), ("p99", 0.99))
        if n < minimum_queries(percentile)
    ]
    if harness_us > _HARNESS_SHARE * p50_us:
        notes.append(f"the timing itself is {harness_us / p50_us:.0%} of the latency ({harness_us:.2f} of {p50_us:.2f} us)")
    return tuple(notes)


def _nothing(query: int) -> None:
    """The null model: what remains is the harness."""


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
