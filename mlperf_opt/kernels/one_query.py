"""Attention of one query on a cache, its parts: scores, and the mix of values.

The keys of a head lie in panels of 16 places, [width][16 places], so that one vector holds the scores of 16 places, no sum
runs across lanes, and memory is read in the order in which it lies; the values lie [places][width]. The parts exist for each
kind of number that a cache holds: it is widened to float32 as it is loaded.
"""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.jit import kernel
from mlperf_opt.kernels.simd import (
    add,
    floats,
    load_codes,
    load_float,
    load_floats,
    load_halves,
    multiply,
    multiply_add,
    store_floats,
    store_some_floats,
)

_NONE = np.float32(0)


def _parts(load, size):
    """(scores of one query, mix of values) for numbers of ``size`` bytes, 16 of which ``load`` reads as float32."""

    @kernel()
    def score(query, keys, last, width, scores):
        """Write query k^T for the first ``last`` places, in whole panels; four of them share a number of the query."""
        panel = size * LANES * width
        p = 0
        while p + 4 * LANES < last + LANES:
            a, b, c, d = floats(_NONE), floats(_NONE), floats(_NONE), floats(_NONE)
            for i in range(width):
                number, here = floats(load_float(query + 4 * i)), keys + size * LANES * i
                a = multiply_add(number, load(here), a)
                b = multiply_add(number, load(here + panel), b)
                c = multiply_add(number, load(here + 2 * panel), c)
                d = multiply_add(number, load(here + 3 * panel), d)
            store_floats(scores + 4 * p, a)
            store_floats(scores + 4 * (p + LANES), b)
            store_floats(scores + 4 * (p + 2 * LANES), c)
            store_floats(scores + 4 * (p + 3 * LANES), d)
            keys += 4 * panel
            p += 4 * LANES
        while p < last:
            a, b, i = floats(_NONE), floats(_NONE), 0
            while i + 2 <= width:
                here = keys + size * LANES * i
                a = multiply_add(floats(load_float(query + 4 * i)), load(here), a)
                b = multiply_add(floats(load_float(query + 4 * i + 4)), load(here + size * LANES), b)
                i += 2
            if i < width:
                a = multiply_add(floats(load_float(query + 4 * i)), load(keys + size * LANES * i), a)
            store_floats(scores + 4 * p, add(a, b))
            keys += panel
            p += LANES

    @kernel()
    def mix(shares, values, step, used, width, out):
        """Write the sum of the values of ``used`` places, ``step`` bytes apart, each times its share."""
        i = 0
        while i + 2 * LANES <= width:
            column = values + size * i
            a, b, c, d = floats(_NONE), floats(_NONE), floats(_NONE), floats(_NONE)
            p = 0
            while p + 2 <= used:
                here = column + p * step
                share, next_share = floats(load_float(shares + 4 * p)), floats(load_float(shares + 4 * p + 4))
                a = multiply_add(share, load(here), a)
                b = multiply_add(share, load(here + size * LANES), b)
                c = multiply_add(next_share, load(here + step), c)
                d = multiply_add(next_share, load(here + step + size * LANES), d)
                p += 2
            if p < used:
                share = floats(load_float(shares + 4 * p))
                a = multiply_add(share, load(column + p * step), a)
                b = multiply_add(share, load(column + p * step + size * LANES), b)
            store_floats(out + 4 * i, add(a, c))
            store_floats(out + 4 * (i + LANES), add(b, d))
            i += 2 * LANES
        while i < width:
            column = values + size * i
            a, b, c, d = floats(_NONE), floats(_NONE), floats(_NONE), floats(_NONE)
            p = 0
            while p + 4 <= used:
                here = column + p * step
                a = multiply_add(floats(load_float(shares + 4 * p)), load(here), a)
                b = multiply_add(floats(load_float(shares + 4 * p + 4)), load(here + step), b)
                c = multiply_add(floats(load_float(shares + 4 * p + 8)), load(here + 2 * step), c)
                d = multiply_add(floats(load_float(shares + 4 * p + 12)), load(here + 3 * step), d)
                p += 4
            while p < used:
                a = multiply_add(floats(load_float(shares + 4 * p)), load(column + p * step), a)
                p += 1
            store_some_floats(out + 4 * i, width - i, add(add(a, b), add(c, d)))
            i += LANES

    return score, mix


score_floats, mix_floats = _parts(load_floats, 4)
score_halves, mix_halves = _parts(load_halves, 2)
score_codes, mix_codes = _parts(load_codes, 1)


@kernel()
def scale_query(query, width, out):
    """Write query / sqrt(width)."""
    scale = floats(np.float32(1 / math.sqrt(width)))
    for i in range(0, width, LANES):
        store_floats(out + 4 * i, multiply(load_floats(query + 4 * i), scale))
