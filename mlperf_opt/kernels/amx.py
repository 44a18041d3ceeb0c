"""int8 products on tiles: Intel AMX multiplies 16 rows x 64 bytes by 64 bytes x 16 columns at once, 8 times what VNNI does.

A block is 2 x 2 tiles of sums: two tiles of rows, each used for two panels, so that half as many tiles are loaded as
multiplied. The packed weights of `tiles.py` are tiles already: 16 groups of one panel are 16 lines of 64 bytes. The sums go
through a small buffer in the first-level cache, from where they are finished like those of the other kernels.

Tile registers: 0 to 3 sums, 4 and 5 rows, 6 and 7 weights.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from mlperf_opt.kernels.emit import (
    I8,
    I32,
    I64,
    LANES,
    at,
    call,
    instruction,
    lanes_of,
    load,
    number,
    store_first,
    tail_mask,
)
from mlperf_opt.kernels.instruction import field, operand
from mlperf_opt.kernels.jit import features, kernel, operation
from mlperf_opt.kernels.opcodes import DONE, INT8_PRODUCT
from mlperf_opt.kernels.product import (
    BIAS,
    COLUMNS,
    GROUPS,
    IMAGE_STEP,
    LINE_STEP,
    LINES,
    LOW,
    OUT,
    OUT_IMAGE_STEP,
    OUT_LINE_STEP,
    OUT_ROW_STEP,
    PANELS,
    PIXELS,
    REAL_BIAS,
    ROW_SCALE,
    ROW_STEP,
    ROW_ZERO,
    SCALE,
    SCALES_IMAGE_STEP,
    SCALES_ROW_STEP,
    SCRATCH,
    SEGMENT_STEP,
    SEGMENTS,
    SUMS,
    TO_CODES,
    WEIGHT,
    ZERO,
    X,
)  # fmt: skip
from mlperf_opt.kernels.simd import load_float
from mlperf_opt.kernels.tiles import INT8_FINISH, finish_codes, finish_real, variants

ROWS, TILE_BYTES = 16, 1024
GROUPS_OF_TILE = 16
SCRATCH_BYTES = 4 * TILE_BYTES
CONFIG = 29  # field: the reference to the tile configuration
_SHAPES = ((1, 1), (1, 2), (2, 1), (2, 2))  # (tiles of rows, panels)
_SUMS_STEP = 128  # bytes of a row of sums: two panels
_ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA, _SYS_ARCH_PRCTL = 0x1023, 18, 158


@cache
def available() -> bool:
    """Whether the CPU has int8 tiles and the system lets this process use them (Linux gives 8 KB of state on request)."""
    if "amx-int8" not in features() or "avx512vnni" not in features() or platform.system() != "Linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


def configuration(rows: int) -> np.ndarray:
    """The 64 bytes of a tile configuration: ``rows`` rows of sums and inputs, 16 of weights, 64 bytes wide."""
    config = np.zeros(64, np.uint8)
    config[0] = 1  # palette
    config[16:32].view(np.uint16)[:] = 64
    config[48:56] = [rows] * 6 + [GROUPS_OF_TILE] * 2
    return config


def _tile(number_: int) -> Any:
    return ir.Constant(I8, number_)


def _amx(b: ir.IRBuilder, name: str, *arguments: Any) -> None:
    if "amx-int8" in features():  # elsewhere nothing is emitted, and nothing gets here
        call(b, f"llvm.x86.{name}", ir.VoidType(), *arguments)


@instruction(types.none, types.int64)
def _configure(b: Any, config: Any) -> None:
    _amx(b, "ldtilecfg", at(b, config, I8))


@instruction(types.none)
def _release(b: Any) -> None:
    _amx(b, "tilerelease")


@instruction(types.none, *[types.int64] * 11)
def _block(b: Any, shape: Any, *values: Any) -> None:
    """Sums of one block: x and weight as in `tiles.py`; ``tile_step`` from one tile of rows to the next."""
    x, row_step, tile_step, segments, segment_step, steps, weight, panel_step, segment_bytes, out = values
    line = number(64)
    for case in variants(b, shape, len(_SHAPES)):
        tiles, panels = _SHAPES[case]
        for t in range(tiles):
            for p in range(panels):
                _amx(b, "tilezero", _tile(2 * t + p))
        with cgutils.for_range(b, segments, intp=I64) as segment:
            rows = b.add(x, b.mul(segment.index, segment_step))
            columns = b.add(weight, b.mul(segment.index, segment_bytes))
            with cgutils.for_range(b, steps, intp=I64) as step:
                here = b.add(rows, b.mul(step.index, line))
                tile = b.add(columns, b.mul(step.index, number(TILE_BYTES)))
                for p in range(panels):
                    _amx(b, "tileloadd64", _tile(6 + p), at(b, b.add(tile, b.mul(panel_step, number(p))), I8), line)
                for t in range(tiles):
                    _amx(b, "tileloadd64", _tile(4 + t), at(b, b.add(here, b.mul(tile_step, number(t))), I8), row_step)
                    for p in range(panels):
                        _amx(b, "tdpbusd", _tile(2 * t + p), _tile(4 + t), _tile(6 + p))
        for t in range(tiles):
            for p in range(panels):
                place = b.add(out, number(t * ROWS * _SUMS_STEP + 64 * p))
                _amx(b, "tilestored64", _tile(2 * t + p), at(b, place, I8), number(_SUMS_STEP))


@instruction(types.none, *[types.int64] * (6 + len(INT8_FINISH)), types.float32)
def _finish_rows(b: Any, sums: Any, out: Any, out_step: Any, rows: Any, first: Any, columns: Any, *values: Any) -> None:
    """Finish one panel of ``rows`` rows of sums."""
    given: dict[str, Any] = dict(zip((*INT8_FINISH, "low"), values, strict=True))
    mask = tail_mask(b, columns)

    def each_row(finish: Any) -> None:
        with cgutils.for_range(b, rows, intp=I64) as row:
            total = load(b, b.add(sums, b.mul(row.index, number(_SUMS_STEP))), lanes_of(I32))
            place = b.add(out, b.mul(row.index, out_step))
            store_first(b, place, finish(total, b.add(first, row.index)), mask)

    with b.if_else(b.icmp_signed("!=", given["to_codes"], number(0))) as (codes, reals):
        with codes:
            each_row(lambda total, _row: finish_codes(b, total, given, number(0)))
        with reals:
            each_row(lambda total, row: finish_real(b, total, given, number(0), row))


@kernel()
def _finish_block(instruction_, memories, sums, tiles, tile_rows, panel, panels, image, row, out, out_tile_step):
    to_codes, zero = field(instruction_, TO_CODES), field(instruction_, ZERO)
    scales_step, skip = field(instruction_, SCALES_ROW_STEP), image * field(instruction_, SCALES_IMAGE_STEP)
    row_scale = operand(instruction_, ROW_SCALE, memories) + skip
    row_zero = operand(instruction_, ROW_ZERO, memories) + skip
    low, out_step = load_float(instruction_ + 8 * LOW), field(instruction_, OUT_ROW_STEP)
    size = 1 if to_codes else 4
    for p in range(panel, panel + panels):
        bias, scale = operand(instruction_, BIAS, memories) + 64 * p, operand(instruction_, SCALE, memories) + 64 * p
        total, real_bias = (
            operand(instruction_, SUMS, memories) + 64 * p,
            operand(instruction_, REAL_BIAS, memories) + 64 * p,
        )
        columns = field(instruction_, COLUMNS) - LANES * p
        for t in range(tiles):
            _finish_rows(
                sums + t * ROWS * _SUMS_STEP + 64 * (p - panel), out + t * out_tile_step + size * LANES * p, out_step,
                tile_rows, row + t * ROWS, columns,
                to_codes, bias, scale, zero, row_scale, row_zero, scales_step, total, real_bias, low,
            )  # fmt: skip


@operation(leaves_to=INT8_PRODUCT)
def product_on_tiles(instruction_, memories, rows):
    """Run one int8 product, as `product.int8_product`; a linear layer of fewer rows than a tile is left to that one."""
    images, lines, pixels = 1, 1, rows
    convolution = field(instruction_, PIXELS) > 0
    if rows < ROWS and not convolution:
        return INT8_PRODUCT
    if convolution:
        images, lines, pixels = rows, field(instruction_, LINES), field(instruction_, PIXELS)
    panels, segments, groups = field(instruction_, PANELS), field(instruction_, SEGMENTS), field(instruction_, GROUPS)
    row_step, out_step = field(instruction_, ROW_STEP), field(instruction_, OUT_ROW_STEP)
    weight, sums = operand(instruction_, WEIGHT, memories), operand(instruction_, SCRATCH, memories)
    at_once, tile_rows = min(panels, 2), min(pixels, ROWS)
    # two tiles of rows: of a convolution the same pixels of two lines, else 32 rows
    tiles = min(lines, 2) if convolution else min(pixels // ROWS, 2)
    tile_step = field(instruction_, LINE_STEP) if convolution else ROWS * row_step
    out_tile_step = field(instruction_, OUT_LINE_STEP) if convolution else ROWS * out_step
    across = ROWS if convolution else tiles * ROWS  # pixels that a block covers
    down = tiles if convolution else 1
    shape = 2 * (tiles - 1) + at_once - 1
    _configure(operand(instruction_, CONFIG, memories))
    for image in range(images):
        first = 0
        while first < panels:
            panel = min(first, panels - at_once)
            top = 0
            while top < lines:
                line = min(top, lines - down)
                left = 0
                while left < pixels:
                    row = max(min(left, pixels - across), 0)
                    x = operand(instruction_, X, memories) + image * field(instruction_, IMAGE_STEP)
                    x += line * field(instruction_, LINE_STEP) + row * row_step
                    out = operand(instruction_, OUT, memories) + image * field(instruction_, OUT_IMAGE_STEP)
                    out += line * field(instruction_, OUT_LINE_STEP) + row * out_step
                    _block(
                        shape, x, row_step, tile_step, segments, field(instruction_, SEGMENT_STEP), groups // GROUPS_OF_TILE,
                        weight + panel * segments * groups * 64, segments * groups * 64, groups * 64, sums,
                    )  # fmt: skip
                    _finish_block(
                        instruction_, memories, sums, tiles, tile_rows, panel, at_once, image, row, out, out_tile_step
                    )
                    left += across
                top += down
            first += at_once
    _release()
    return DONE
