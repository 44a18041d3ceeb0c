"""linear and conv2d on packed weights: which micro-kernel works on which rows and columns (the arithmetic: `tiles.py`).

Rows and columns that are left over at an edge are covered by a last tile that overlaps the one before: it computes a few
outputs twice, to the same bits, and no shape needs code of its own.
"""

from __future__ import annotations

import numpy as np

from mlperf_opt.kernels import tiles
from mlperf_opt.kernels.instruction import field, operand
from mlperf_opt.kernels.jit import kernel
from mlperf_opt.kernels.simd import floats, load_codes, load_float, load_floats, load_halves, multiply, store_floats
from mlperf_opt.kernels.tiles import CODES, FLOAT, GROUP_BYTES, HALF, INT8, INT8_PORTABLE, LANES, shapes_of

# fields of the instruction, behind the opcode
(
    KIND, X, IMAGE_STEP, LINE_STEP, ROW_STEP, LINES, PIXELS, SEGMENTS, SEGMENT_STEP, GROUPS, WEIGHT, PANELS, OUT,
    OUT_IMAGE_STEP, OUT_LINE_STEP, OUT_ROW_STEP, COLUMNS, BIAS, SCALE, LOW, TO_CODES, ZERO, ROW_SCALE, ROW_ZERO,
    SCALES_IMAGE_STEP, SCALES_ROW_STEP, SUMS, REAL_BIAS, SCRATCH,
) = range(1, 30)  # fmt: skip

_float_tile, _half_tile, _codes_tile = tiles.float_tile, tiles.half_tile, tiles.codes_tile
_int8_tile, _int8_portable_tile = tiles.int8_tile, tiles.int8_portable_tile
_MOST_ROWS = 12
_WIDEN_FROM = 4  # rows: from here on, widening half and int8 weights once is cheaper than once for each row


def _shape_table() -> np.ndarray:
    """[kind, panels, rows] -> number of the micro-kernel, -1 where there is none."""
    table = np.full((INT8_PORTABLE + 1, 9, _MOST_ROWS + 1), -1, np.int64)
    for kind in GROUP_BYTES:
        for number, (panels, rows) in enumerate(shapes_of(kind)):
            table[kind, panels, rows] = number
    return table


_SHAPE = _shape_table()
_FLOAT, _HALF, _CODES, _INT8 = FLOAT, HALF, CODES, INT8
_GROUP_BYTES = np.array([GROUP_BYTES[kind] for kind in sorted(GROUP_BYTES)])


@kernel()
def _panels_at_once(kind, panels, pixels):
    """Many rows want few panels and many rows a tile, one row many panels (measured: 2 x 12 is the best of all)."""
    wanted = 8 if pixels == 1 else 4 if pixels < 12 else 2
    while wanted > panels or _SHAPE[kind, wanted, 1] < 0:
        wanted //= 2
    return wanted


@kernel()
def product(instruction, memories, rows):
    """Run one product; ``rows`` are the rows of a linear layer, or the images of a convolution (PIXELS > 0)."""
    kind = field(instruction, KIND)
    images, lines, pixels = 1, 1, rows
    if field(instruction, PIXELS) > 0:
        images, lines, pixels = rows, field(instruction, LINES), field(instruction, PIXELS)
    panels = field(instruction, PANELS)
    segments, groups = field(instruction, SEGMENTS), field(instruction, GROUPS)
    panel_step = segments * groups * _GROUP_BYTES[kind]
    weight = operand(instruction, WEIGHT, memories)
    widen = (kind == _HALF or kind == _CODES) and pixels >= _WIDEN_FROM
    running = _FLOAT if widen else kind
    step = panel_step
    if widen:
        step = segments * groups * _GROUP_BYTES[_FLOAT]
    at_once = _panels_at_once(running, panels, pixels)
    tile = min(pixels, _MOST_ROWS)
    while _SHAPE[running, at_once, tile] < 0:
        tile -= 1
    shape = _SHAPE[running, at_once, tile]
    for image in range(images):
        done = 0
        while done < panels:
            panel = min(done, panels - at_once)
            here = weight + panel * panel_step
            if widen:
                scratch = operand(instruction, SCRATCH, memories)
                _widen(kind, here, scratch, at_once, segments * groups, operand(instruction, SCALE, memories) + 64 * panel)
                here = scratch
            for line in range(lines):
                x = operand(instruction, X, memories)
                x += image * field(instruction, IMAGE_STEP) + line * field(instruction, LINE_STEP)
                out = operand(instruction, OUT, memories)
                out += image * field(instruction, OUT_IMAGE_STEP) + line * field(instruction, OUT_LINE_STEP)
                first = 0
                while first < pixels:
                    row = min(first, pixels - tile)
                    _tile(instruction, memories, running, shape, x, image, row, here, step, panel, out)
                    first += tile
            done += at_once


@kernel()
def _tile(instruction, memories, kind, shape, x, image, row, weight, panel_step, panel, out):
    row_step, out_step = field(instruction, ROW_STEP), field(instruction, OUT_ROW_STEP)
    segments, segment_step = field(instruction, SEGMENTS), field(instruction, SEGMENT_STEP)
    groups = field(instruction, GROUPS)
    columns = field(instruction, COLUMNS) - LANES * panel
    x += row * row_step
    out += row * out_step
    bias = operand(instruction, BIAS, memories) + 64 * panel
    scale = operand(instruction, SCALE, memories) + 64 * panel
    low = load_float(instruction + 8 * LOW)
    if kind <= _CODES:
        out += 64 * panel
        if kind == _FLOAT:
            _float_tile(
                shape, x, row_step, segments, segment_step, groups, weight, panel_step, out, out_step, columns, bias, scale,
                low,
            )  # fmt: skip
        elif kind == _HALF:
            _half_tile(
                shape, x, row_step, segments, segment_step, groups, weight, panel_step, out, out_step, columns, bias, scale,
                low,
            )  # fmt: skip
        else:
            _codes_tile(
                shape, x, row_step, segments, segment_step, groups, weight, panel_step, out, out_step, columns, bias, scale,
                low,
            )  # fmt: skip
        return
    to_codes, zero = field(instruction, TO_CODES), field(instruction, ZERO)
    scales_step = field(instruction, SCALES_ROW_STEP)
    skip = image * field(instruction, SCALES_IMAGE_STEP) + row * scales_step
    row_scale = operand(instruction, ROW_SCALE, memories) + skip
    row_zero = operand(instruction, ROW_ZERO, memories) + skip
    sums = operand(instruction, SUMS, memories) + 64 * panel
    real_bias = operand(instruction, REAL_BIAS, memories) + 64 * panel
    out += (LANES if to_codes else 4 * LANES) * panel
    if kind == _INT8:
        _int8_tile(
            shape, x, row_step, segments, segment_step, groups, weight, panel_step, out, out_step, columns,
            to_codes, bias, scale, zero, row_scale, row_zero, scales_step, sums, real_bias, low,
        )  # fmt: skip
    else:
        _int8_portable_tile(
            shape, x, row_step, segments, segment_step, groups, weight, panel_step, out, out_step, columns,
            to_codes, bias, scale, zero, row_scale, row_zero, scales_step, sums, real_bias, low,
        )  # fmt: skip


@kernel()
def _widen(kind, weight, out, panels, groups, scale):
    """Write panels of float16, or of int8 times the scale of their column, as float32."""
    for panel in range(panels):
        factor = floats(np.float32(1))
        if kind == _CODES:
            factor = load_floats(scale + 64 * panel)
        for group in range(panel * groups, (panel + 1) * groups):
            if kind == _CODES:
                store_floats(out + 64 * group, multiply(load_codes(weight + 16 * group), factor))
            else:
                store_floats(out + 64 * group, load_halves(weight + 32 * group))
