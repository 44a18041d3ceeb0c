"""Samples per second with the batches back to back."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from mlperf_opt.errors import MlperfOptError
from mlperf_opt.measure.timing import Clock
from mlperf_opt.settings import require

_WINDOWS = 5


def samples_per_second(run: Callable[[], int], seconds: float, *, clock: Clock = time.perf_counter_ns) -> float:
    """Return the median rate of five windows, MLPerf Tiny's rule.

    One batch runs before as a warm-up. A window ends with a whole batch, so slow batches take longer than ``seconds``.

    Args:
        run: processes one batch and returns the number of its samples.
        seconds: time to spend in all windows together.
        clock: nanoseconds; replaced in tests.

    Raises:
        ConfigError: ``seconds`` is not positive.
        MlperfOptError: the clock doesn't advance, or ``run`` counts no samples.
    """
    require(seconds > 0, "seconds", seconds, "more than 0")
    run()
    rates = [_rate(run, seconds * 1e9 / _WINDOWS, clock) for _ in range(_WINDOWS)]
    return statistics.median(rates)


def _rate(run: Callable[[], int], window_ns: float, clock: Clock) -> float:
    samples, elapsed = 0, 0.0
    start = clock()
    while elapsed < window_ns:
        done = run()
        now = clock() - start
        if done < 1:
            raise MlperfOptError(f"cannot measure the throughput: a batch of {done} samples")
        if not now > elapsed:
            raise MlperfOptError("cannot measure the throughput: the clock doesn't advance")
        samples, elapsed = samples + done, now
    return samples / elapsed * 1e9
