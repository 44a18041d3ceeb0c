"""Two callables timed against each other, in windows that alternate.

`mlperf_opt.measure.time_pair` times single queries, which is what a latency is. Here the question is a ratio down to a
microsecond a call, where reading the clock would be a tenth: so a window is many calls between two readings.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlperf_opt.measure import median_ratio_interval

Call = Callable[[], Any]
Clock = Callable[[], float]  # seconds

_WINDOW_SECONDS = 1e-3  # less than a time slice: a window is either undisturbed or plainly not, and the median is
_LEAST_ROUNDS = 7
# wall: what passes. cpu: what this process computes, all threads together; with one thread the same on an idle machine, and
# on a busy one the figure that means something.
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
_MOST_CALLS = 100_000


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        first_us, second_us: medians over windows of the time of a call.
        ratio: second / first: how many times faster the first is; median over the paired windows.
        low, high: its 95 % bootstrap interval.
        rounds: windows of each.
    """

    first_us: float
    second_us: float
    ratio: float
    low: float
    high: float
    rounds: int


def compare(
    first: Call, second: Call, seconds: float, *, pause: float = 0.0, clock: Clock = time.perf_counter
) -> Comparison:
    """Time ``first`` against ``second`` for about ``seconds``, at least seven windows each.

    Every window begins with a call that isn't counted: it brings back the caches that the other has taken.

    Args:
        first: a call; its own warm-up too, so it must not depend on how often it ran.
        second: the other.
        seconds: to spend.
        pause: seconds of sleep between windows, in which the threads of the last one stop waiting for work: they do so by
            spinning, on the core that the next one needs.
        clock: replaced in tests.
    """
    calls = (first, second)
    counts = [_calls_per_window(call, clock) for call in calls]
    taken: list[list[float]] = [[], []]
    enabled = gc.isenabled()
    gc.disable()
    try:
        end = clock() + seconds
        while len(taken[0]) < _LEAST_ROUNDS or clock() < end:
            # first, second, second, first, ...: neither always follows the other
            order = (0, 1) if len(taken[0]) % 2 == 0 else (1, 0)
            for which in order:
                if pause:
                    time.sleep(pause)
                taken[which].append(_window(calls[which], counts[which], clock))
    finally:
        if enabled:
            gc.enable()
    return summarize(*taken)


def summarize(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Return the comparison of paired times, in seconds."""
    one, two = np.asarray(first), np.asarray(second)
    ratio, low, high = median_ratio_interval(two / one, 0)
    return Comparison(float(np.median(one)) * 1e6, float(np.median(two)) * 1e6, ratio, low, high, len(one))


def _window(call: Call, count: int, clock: Clock) -> float:
    call()
    started = clock()
    for _ in range(count):
        call()
    return (clock() - started) / count


def _calls_per_window(call: Call, clock: Clock) -> int:
    """Warm up, and return how many calls make a window."""
    count = 1
    while True:
        taken = _window(call, count, clock) * count
        if taken >= _WINDOW_SECONDS / 2 or count >= _MOST_CALLS:
            return int(np.clip(round(count * _WINDOW_SECONDS / max(taken, 1e-9)), 1, _MOST_CALLS))
        count *= 4
