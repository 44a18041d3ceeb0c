"""Learning-rate schedules."""

from __future__ import annotations

import math


def cosine(step: int, total: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """Return the rate of step 1..total: linear up to ``peak`` at step ``warmup``, then half a cosine down to ``floor``.

    Loshchilov and Hutter, arXiv:1608.03983, without restarts.
    """
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
