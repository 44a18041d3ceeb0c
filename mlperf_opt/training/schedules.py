"""Learning-rate schedules."""

from __future__ import annotations

import math


def cosine(step: int, total: int, warmup: int, peak: float, floor: float = 0.0, stable: int = 0) -> float:
    """Return the rate of step 1..total: linear up to ``peak`` at step ``warmup``, there for ``stable`` steps, then half a
    cosine down to ``floor``.

    Loshchilov and Hutter, arXiv:1608.03983, without restarts; the stable part is that of Hu et al., arXiv:2404.06395.
    """
    if step <= warmup:
        return peak * step / warmup
    start = warmup + stable
    if step <= start:
        return peak
    progress = (step - start) / max(1, total - start)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
