"""How much memory a call allocates at its peak."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the peak of what ``call`` allocates beyond what was there before, in bytes.

    tracemalloc sees numpy's arrays, but not what BLAS or compiled code allocates for itself. Tracing slows a call several
    times, so never time it; and call once before, or the peak counts what only a first call does (compiling, caching).
    """
    tracing = tracemalloc.is_tracing()
    if tracing:
        gc.collect()  # what it frees meanwhile would be taken off the peak; what was there before tracing is not counted
    else:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not tracing:
            tracemalloc.stop()
    return max(0, peak - before)
