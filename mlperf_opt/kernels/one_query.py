"""Attention of one query on a cache, its parts: scores, and the mix of values.

The keys of a head lie transposed, [width][places], so that one vector holds the scores of 16 places and no sum runs across
lanes; the values lie [places][width]. The parts exist for each kind of number that a cache holds: it is widened to float32
as it is loaded.
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
    def score(query, keys, places, last, width, scores):
        """Write query k^T for the first ``last`` places, in whole vectors; ``places`` is the length of a row of keys.

        Eight rows of keys at once, from one end to the other: memory is read in the order in which it lies.
        """
        i = 0
        while i + 8 <= width:
            row, at = keys + size * i * places, query + 4 * i
            a, b = floats(load_float(at)), floats(load_float(at + 4))
            c, d = floats(load_float(at + 8)), floats(load_float(at + 12))
            e, f = floats(load_float(at + 16)), floats(load_float(at + 20))
            g, h = floats(load_float(at + 24)), floats(load_float(at + 28))
            step = size * places
            for p in range(0, last, LANES):
                here = row + size * p
                total = load_floats(scores + 4 * p) if i else floats(_NONE)
                total = multiply_add(a, load(here), total)
                other = multiply(b, load(here + step))
                total = multiply_add(c, load(here + 2 * step), total)
                other = multiply_add(d, load(here + 3 * step), other)
                total = multiply_add(e, load(here + 4 * step), total)
                other = multiply_add(f, load(here + 5 * step), other)
                total = multiply_add(g, load(here + 6 * step), total)
                other = multiply_add(h, load(here + 7 * step), other)
                store_floats(scores + 4 * p, add(total, other))
            i += 8
        while i < width:
            a, row = floats(load_float(query + 4 * i)), keys + size * i * places
            for p in range(0, last, LANES):
                total = load_floats(scores + 4 * p) if i else floats(_NONE)
                store_floats(scores + 4 * p, multiply_add(a, load(row + size * p), total))
            i += 1

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
