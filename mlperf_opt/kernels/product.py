"""linear and conv2d on packed weights: which micro-kernel works on which rows and columns (the arithmetic: `tiles.py`).

Rows and columns that are left over at an edge are covered by a last tile that overlaps the one before: it computes a few
outputs twice, to the same bits, and no shape needs code of its own.

There is an operation for each kind of product, because the micro-kernels take long to compile and a network needs those of
one or two kinds. All of them are the same loops around other micro-kernels.
"""

from __future__ import annotations

import numpy as np

from mlperf_opt.kernels import tiles
from mlperf_opt.kernels.instruction import field, operand
from mlperf_opt.kernels.jit import kernel, operation
from mlperf_opt.kernels.opcodes import DONE
from mlperf_opt.kernels.simd import floats, load_codes, load_float, load_floats, load_halves, multiply, store_floats
from mlperf_opt.kernels.tiles import CODES, FLOAT, GROUP_BYTES, HALF, INT8, INT8_PORTABLE, LANES, rows_of_tiles, shapes_of

# fields of the instruction, behind the opcode
(
    X, IMAGE_STEP, LINE_STEP, ROW_STEP, LINES, PIXELS, SEGMENTS, SEGMENT_STEP, GROUPS, WEIGHT, PANELS, OUT,
    OUT_IMAGE_STEP, OUT_LINE_STEP, OUT_ROW_STEP, COLUMNS, BIAS, SCALE, LOW, TO_CODES, ZERO, ROW_SCALE, ROW_ZERO,
    SCALES_IMAGE_STEP, SCALES_ROW_STEP, SUMS, REAL_BIAS, SCRATCH,
) = range(1, 29)  # fmt: skip

_float_tile, _half_tile, _codes_tile = tiles.float_tile, tiles.half_tile, tiles.codes_tile
_int8_tile, _portable_tile = tiles.int8_tile, tiles.portable_tile
_MOST_ROWS = 12
_WIDEN_FROM = 4  # rows: from here on, widening half and int8 weights once is cheaper than once for each row


def _shape_table() -> np.ndarray:
    """[kind, panels, rows] -> number of the micro-kernel, -1 where there is none."""
    table = np.full((INT8_PORTABLE + 1, 9, _MOST_ROWS + 1), -1, np.int64)
    for kind in GROUP_BYTES:
        for number, (panels, rows) in enumerate(shapes_of(kind)):
            table[kind, panels, rows] = number
    return table


def _rows_table() -> np.ndarray:
    """[kind, panels, rows left, rows in all] -> rows of the next tile."""
    table = np.zeros((INT8_PORTABLE + 1, 9, _MOST_ROWS + 1, _MOST_ROWS + 1), np.int64)
    for kind in GROUP_BYTES:
        for panels in {p for p, _ in shapes_of(kind)}:
            table[kind, panels] = rows_of_tiles([rows for p, rows in shapes_of(kind) if p == panels], _MOST_ROWS)
    return table


_SHAPE, _ROWS = _shape_table(), _rows_table()
_FLOAT, _HALF, _CODES, _INT8, _PORTABLE = FLOAT, HALF, CODES, INT8, INT8_PORTABLE
_GROUP_BYTES = np.array([GROUP_BYTES[kind] for kind in sorted(GROUP_BYTES)])


@kernel()
def _panels_at_once(kind, panels, pixels):
    """Many rows want few panels and many rows a tile, one row many panels (measured: 2 x 12 is the best of all)."""
    wanted = 8 if pixels == 1 else 4 if pixels < 12 else 2
    while wanted > panels or _SHAPE[kind, wanted, 1] < 0:
        wanted //= 2
    return wanted


@kernel(inline=True)
def _product(tile, stored, running, instruction, memories, rows):
    """Run one product; ``rows`` are the rows of a linear layer, or the images of a convolution (PIXELS > 0).

    Everything is read out of the instruction before the loops: a tile of a small layer takes no longer than that.

    Args:
        tile: the micro-kernels of the kind ``running``.
        stored: the kind that the weights are packed for; where it is another, they are widened first.
        running: the kind that is run.
    """
    images, lines, pixels = 1, 1, rows
    if field(instruction, PIXELS) > 0:
        images, lines, pixels = rows, field(instruction, LINES), field(instruction, PIXELS)
    x_start, out_start = operand(instruction, X, memories), operand(instruction, OUT, memories)
    image_step, line_step, row_step = (
        field(instruction, IMAGE_STEP), field(instruction, LINE_STEP), field(instruction, ROW_STEP)
    )  # fmt: skip
    out_image_step, out_line_step, out_step = (
        field(instruction, OUT_IMAGE_STEP), field(instruction, OUT_LINE_STEP), field(instruction, OUT_ROW_STEP)
    )  # fmt: skip
    segments, segment_step, groups = (
        field(instruction, SEGMENTS),
        field(instruction, SEGMENT_STEP),
        field(instruction, GROUPS),
    )
    panels, weight = field(instruction, PANELS), operand(instruction, WEIGHT, memories)
    all_columns = field(instruction, COLUMNS)
    bias, scale = operand(instruction, BIAS, memories), operand(instruction, SCALE, memories)
    low, to_codes, zero = load_float(instruction + 8 * LOW), field(instruction, TO_CODES), field(instruction, ZERO)
    row_scale, row_zero = operand(instruction, ROW_SCALE, memories), operand(instruction, ROW_ZERO, memories)
    scales_image_step, scales_step = field(instruction, SCALES_IMAGE_STEP), field(instruction, SCALES_ROW_STEP)
    sums, real_bias = operand(instruction, SUMS, memories), operand(instruction, REAL_BIAS, memories)
    column_bytes = LANES if to_codes else 4 * LANES
    panel_step, step = segments * groups * _GROUP_BYTES[stored], segments * groups * _GROUP_BYTES[running]
    at_once = _panels_at_once(running, panels, pixels)
    for image in range(images):
        done = 0
        while done < panels:
            panel = min(done, panels - at_once)
            here = weight + panel * panel_step
            if stored != running:
                scratch = operand(instruction, SCRATCH, memories)
                _widen(stored, here, scratch, at_once, segments * groups, scale + 64 * panel)
                here = scratch
            columns, skip = all_columns - LANES * panel, 64 * panel
            for line in range(lines):
                first = 0
                while first < pixels:
                    now = _ROWS[running, at_once, min(pixels - first, _MOST_ROWS), min(pixels, _MOST_ROWS)]
                    row, shape = min(first, pixels - now), _SHAPE[running, at_once, now]
                    x = x_start + image * image_step + line * line_step + row * row_step
                    out = out_start + image * out_image_step + line * out_line_step + row * out_step + panel * column_bytes
                    grid = image * scales_image_step + row * scales_step
                    tile(
                        shape, x, row_step, segments, segment_step, groups, here, step, out, out_step, columns,
                        to_codes, bias + skip, scale + skip, zero, row_scale + grid, row_zero + grid, scales_step,
                        sums + skip, real_bias + skip, low,
                    )  # fmt: skip
                    first += now
            done += at_once
    return DONE


@operation()
def float_product(instruction, memories, rows):
    """float32 weights."""
    return _product(_float_tile, _FLOAT, _FLOAT, instruction, memories, rows)


@operation()
def half_product(instruction, memories, rows):
    """float16 weights: widened as they are read, or once for many rows."""
    if _pixels(instruction, rows) >= _WIDEN_FROM:
        return _product(_float_tile, _HALF, _FLOAT, instruction, memories, rows)
    return _product(_half_tile, _HALF, _HALF, instruction, memories, rows)


@operation()
def codes_product(instruction, memories, rows):
    """int8 weights in float32 arithmetic: widened as they are read, or once for many rows."""
    if _pixels(instruction, rows) >= _WIDEN_FROM:
        return _product(_float_tile, _CODES, _FLOAT, instruction, memories, rows)
    return _product(_codes_tile, _CODES, _CODES, instruction, memories, rows)


@operation()
def int8_product(instruction, memories, rows):
    """int8 weights and uint8 rows, by vpdpbusd where the CPU has it."""
    return _product(_int8_tile, _INT8, _INT8, instruction, memories, rows)


@operation()
def portable_product(instruction, memories, rows):
    """The same by 32-bit products."""
    return _product(_portable_tile, _PORTABLE, _PORTABLE, instruction, memories, rows)


@kernel()
def _pixels(instruction, rows):
    """How many rows share the weights: of a linear layer, or the pixels of a line of a convolution."""
    return field(instruction, PIXELS) if field(instruction, PIXELS) > 0 else rows


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
