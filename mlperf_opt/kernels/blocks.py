"""Attention of many queries at once: two products of a block of rows with what is packed once for all of them.

    scores[r, p] = query[r] . key[p] / sqrt(width)      keys packed   [16 places a panel][width][16]
    out[r]       = sum over p of share[r, p] value[p]   values packed [16 columns a panel][places][16]

Both are products of `tiles.py`: a vector of keys or values is read once for up to 12 queries. Between them stands the
softmax, whose division is left to the second product, a factor for each row.
"""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.exponential import exponentials
from mlperf_opt.kernels.jit import kernel
from mlperf_opt.kernels.simd import store_float
from mlperf_opt.kernels.tiles import SCALED_SHAPES, rows_of_tiles, scaled_tile

ROWS = 12  # of a block
_LINE = 64  # bytes of a vector
_NONE, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
_FACTORS = 2  # lines: what scores are multiplied by, and what the rows of out are


def _shape_table() -> np.ndarray:
    """[panels, rows] -> number of the tile."""
    table = np.zeros((3, ROWS + 1), np.int64)
    for number, shape in enumerate(SCALED_SHAPES):
        table[shape] = number
    return table


_NEXT, _SHAPE = rows_of_tiles({rows for _, rows in SCALED_SHAPES}, ROWS), _shape_table()


@kernel()
def whole_vectors(count):
    """``count`` floats, filled up to whole vectors: how long rows of keys (places) and of cached values (width) are."""
    return (count + LANES - 1) // LANES * LANES


def block_bytes(places: int, width: int) -> int:
    """Scratch of `attend`, the packed keys and values included."""
    panels, vectors = -(-places // LANES), -(-width // LANES)
    return _LINE * (_FACTORS + panels * width + vectors * panels * LANES + ROWS * (panels | 1))


@kernel()
def packed_keys(scratch):
    """Room for packed keys. What is written behind the last, up to 15 lines, is room of the values, which come next."""
    return scratch + _LINE * _FACTORS


@kernel()
def packed_values(scratch, places, width):
    """Room for packed values."""
    return scratch + _LINE * _FACTORS + 4 * width * whole_vectors(places)


@kernel()
def _product(x, row_step, rows, groups, packed, panel_step, out, out_step, columns, factors):
    """out = x packed, each row times its factor; a last tile of rows overlaps the one before, to the same bits."""
    panel, panels = 0, (columns + LANES - 1) // LANES
    while panel < panels:
        at_once = min(2, panels - panel)
        first = 0
        while first < rows:
            now = _NEXT[rows - first, rows]
            row = min(first, rows - now)
            scaled_tile(
                _SHAPE[at_once, now], x + row * row_step, row_step, groups, packed + panel * panel_step, panel_step,
                out + row * out_step + _LINE * panel, out_step, columns - LANES * panel, factors + 4 * row,
            )  # fmt: skip
            first += now
        panel += at_once


@kernel()
def attend(
    scratch, keys, places, width, rows, query, query_step, far, far_step, own, causal, most, sinks, window, out, out_step
):  # fmt: skip
    """Write what up to `ROWS` queries make of packed keys and `packed_values`.

    Args:
        scratch: address of `block_bytes` for that many ``places``, the packed ones.
        keys: `packed_keys`, or where a cache holds them like that.
        rows: of queries: ``query_step`` bytes apart, as ``out`` is by ``out_step``.
        far: queries for the first ``sinks`` places, where ``far_step`` is not 0.
        own: the place of the first row; each other stands one further where it is ``causal``, and sees what is up to it.
        most: places that any row sees.
        window: the last places that a row sees behind the sinks, 0 for all; as long as it has not come round.
    """
    values, panel = packed_values(scratch, places, width), _LINE * whole_vectors(places)
    scores = values + 4 * whole_vectors(places) * whole_vectors(width)
    last = min(own + 1 + (rows - 1 if causal else 0), most)
    # an odd number of lines from row to row: no two rows lie in the same set of the first cache
    step = _LINE * (whole_vectors(last) // LANES | 1)
    scale = np.float32(1 / math.sqrt(width))
    for r in range(rows):
        store_float(scratch + 4 * r, scale)
    _product(query, query_step, rows, width, keys, _LINE * width, scores, step, last, scratch)
    if far_step > 0:
        _product(far, far_step, rows, width, keys, _LINE * width, scores, step, min(sinks, last), scratch)
    for r in range(rows):
        row, at = scores + r * step, own + (r if causal else 0)
        used = min(at + 1, most)
        if window > 0 and at < most:  # a row of padding may stand further, where no scores are
            for p in range(sinks, at - window + 1):
                store_float(row + 4 * p, -_INFINITY)
        store_float(scratch + _LINE + 4 * r, _ONE / exponentials(row, row, used))
        for p in range(used, last):
            store_float(row + 4 * p, _NONE)
    _product(scores, step, rows, last, values, panel, out, out_step, width, scratch + _LINE)
