"""Products of rows with packed weights: one generator of micro-kernels for float32, float16 and int8 weights.

    out[r, c] = finish(sum over segments s, groups g of  x[r, s, g] * weight[c, s, g])

A micro-kernel keeps ``rows x panels`` accumulators of 16 columns in registers and reads every weight vector once for all
its rows. A linear layer is one segment; a convolution is one segment per line of the filter, because the ``kw x C`` values
that a filter line covers lie side by side in a channels-last image: an implicit product, without im2col.

Layouts:
    x       row r, segment s at ``x + r * row_step + s * segment_step``: float32, or uint8 in groups of 4.
    weight  [panel][segment][group][16 columns][1 float | 1 half | 1 int8 | 4 int8], zeros where one is filled up.

int8 products are exact: u8 x s8 -> int32, by vpdpbusd where the CPU has it (2 x 64 multiply-adds a cycle), else by 32-bit
products of the same lanes. The weights' groups of four are what that instruction wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from mlperf_opt.kernels.emit import (
    F16,
    F32,
    I8,
    I32,
    I64,
    LANES,
    call,
    constant,
    held_back,
    instruction,
    lanes_of,
    load,
    number,
    saturated_codes,
    splat,
    store_first,
    tail_mask,
    to_float,
)
from mlperf_opt.kernels.jit import features

# kinds of product: what the weights are, and how they are multiplied
FLOAT, HALF, CODES, INT8, INT8_PORTABLE = range(5)
# (panels, rows) of the micro-kernels: accumulators + weights + one input fit 32 registers, and there are enough of them
# to hide the latency of a multiply-add (4 or 5 cycles, two at once).
SHAPES = ((8, 1), (4, 6), (4, 4), (4, 2), (4, 1), (2, 12), (2, 8), (2, 4), (2, 2), (2, 1), (1, 12), (1, 8), (1, 4), (1, 1))
# Weights that are widened while they are read serve one row; for many they are widened once.
_ONE_ROW = tuple(shape for shape in SHAPES if shape[1] == 1)
_SMALL = ((2, 4), (2, 1), (1, 4), (1, 1))  # the portable product needs registers of its own
GROUP_BYTES = {FLOAT: 64, HALF: 32, CODES: 16, INT8: 64, INT8_PORTABLE: 64}


def shapes_of(kind: int) -> tuple[tuple[int, int], ...]:
    """The (panels, rows) that a kind of product has micro-kernels for."""
    if kind in (HALF, CODES):
        return _ONE_ROW
    return _SMALL if kind == INT8_PORTABLE else SHAPES


def rows_of_tiles(sizes: Iterable[int], most: int) -> np.ndarray:
    """[rows left, rows in all], up to ``most`` -> rows of the next tile: the fewest that cover what is left, or the most."""
    table = np.zeros((most + 1, most + 1), np.int64)
    for left, total in np.ndindex(table.shape):
        fitting = [rows for rows in sizes if rows <= total]
        covering = [rows for rows in fitting if rows >= left]
        table[left, total] = min(covering, default=max(fitting, default=0))
    return table


def _is_integer(kind: int) -> bool:
    return kind in (INT8, INT8_PORTABLE)


def multiply_accumulate(b: ir.IRBuilder, kind: int, total: Any, x: Any, weight: Any) -> Any:
    """One step of 16 accumulators; ``x`` is one group in all lanes."""
    if not _is_integer(kind):
        return call(b, "llvm.fma.v16f32", total.type, x, weight, total)
    if kind == INT8 and "avx512vnni" in features():
        return _vpdpbusd(b, total, x, weight)
    wide = lanes_of(I32)
    for byte in range(4):
        shift = constant(wide, 8 * byte)
        unsigned = b.and_(b.lshr(x, shift), constant(wide, 255))
        signed = b.ashr(b.shl(weight, constant(wide, 24 - 8 * byte)), constant(wide, 24))
        total = b.add(total, b.mul(unsigned, signed))
    return total


def _vpdpbusd(b: ir.IRBuilder, total: Any, x: Any, weight: Any) -> Any:
    # LLVM 22 takes the bytes as bytes
    codes = lanes_of(I8, 64)
    return call(b, "llvm.x86.avx512.vpdpbusd.512", total.type, total, b.bitcast(x, codes), b.bitcast(weight, codes))


def _load_weights(b: ir.IRBuilder, kind: int, address: Any) -> Any:
    if kind == FLOAT:
        return load(b, address, lanes_of(F32))
    if kind == HALF:
        return to_float(b, load(b, address, lanes_of(F16)))
    if kind == CODES:
        return to_float(b, load(b, address, lanes_of(I8)))
    return load(b, address, lanes_of(I32))


def _accumulate(
    b: ir.IRBuilder, kind: int, panels: int, rows: int, x: Any, row_step: Any, segments: Any, segment_step: Any, groups: Any,
    weight: Any, panel_step: Any,
) -> list[list[Any]]:  # fmt: skip
    """Emit the loops; return the sums [row][panel]."""
    integer = _is_integer(kind)
    vector = lanes_of(I32 if integer else F32)
    sums = [[cgutils.alloca_once(b, vector) for _ in range(panels)] for _ in range(rows)]  # LLVM keeps them in registers
    for slot in (slot for row in sums for slot in row):
        b.store(constant(vector, 0 if integer else 0.0), slot)
    reader = cgutils.alloca_once(b, I64)
    b.store(weight, reader)
    with cgutils.for_range(b, segments, intp=I64) as segment:
        line = b.add(x, b.mul(segment.index, segment_step))
        starts = [b.add(line, b.mul(row_step, number(r))) for r in range(rows)]
        first = b.load(reader)
        with cgutils.for_range(b, groups, intp=I64) as group:
            here = b.add(first, b.mul(group.index, number(GROUP_BYTES[kind])))
            offset = b.mul(group.index, number(4))
            weights = [_load_weights(b, kind, b.add(here, b.mul(panel_step, number(p)))) for p in range(panels)]
            for r in range(rows):
                value = splat(b, load(b, b.add(starts[r], offset), I32 if integer else F32))
                for p in range(panels):
                    b.store(multiply_accumulate(b, kind, b.load(sums[r][p]), value, weights[p]), sums[r][p])
        b.store(b.add(first, b.mul(groups, number(GROUP_BYTES[kind]))), reader)
    return [[b.load(slot) for slot in row] for row in sums]


# what becomes of the sums; each is given one vector of them and the byte offset of its columns in arrays of 4-byte elements


def _at_least(b: ir.IRBuilder, value: Any, low: Any) -> Any:
    low = splat(b, low)
    return b.select(b.fcmp_ordered("<", value, low), low, value)


def _finish_float(b: ir.IRBuilder, kind: int, total: Any, given: dict[str, Any], column: Any) -> Any:
    """sum (x scale of the column, for int8 codes) + bias, at least ``low`` (relu: 0, else -infinity)."""
    if kind == CODES:
        total = b.fmul(total, load(b, b.add(given["scale"], column), lanes_of(F32)))
    return _at_least(b, b.fadd(total, load(b, b.add(given["bias"], column), lanes_of(F32))), given["low"])


def finish_codes(b: ir.IRBuilder, total: Any, given: dict[str, Any], column: Any) -> Any:
    """uint8: clip(rint(float32(sum + bias) * multiplier) + zero, 0, 255)."""
    total = b.add(total, load(b, b.add(given["bias"], column), lanes_of(I32)))
    scaled = b.fmul(b.sitofp(total, lanes_of(F32)), load(b, b.add(given["scale"], column), lanes_of(F32)))
    return saturated_codes(b, scaled, given["zero"])


def finish_real(b: ir.IRBuilder, total: Any, given: dict[str, Any], column: Any, row: Any) -> Any:
    """float32(sum + bias - row zero * column sum) * (row scale * column scale) + float bias, at least ``low``."""
    step = b.mul(given["scales_step"], row)
    zero = splat(b, load(b, b.add(given["row_zero"], step), I32))
    correction = b.mul(zero, load(b, b.add(given["sums"], column), lanes_of(I32)))
    total = b.sub(b.add(total, load(b, b.add(given["bias"], column), lanes_of(I32))), correction)
    row_scale = splat(b, load(b, b.add(given["row_scale"], step), F32))
    scale = b.fmul(row_scale, load(b, b.add(given["scale"], column), lanes_of(F32)))
    value = b.fmul(b.sitofp(total, lanes_of(F32)), scale)
    return _at_least(b, b.fadd(value, load(b, b.add(given["real_bias"], column), lanes_of(F32))), given["low"])


_OPERANDS = ("x", "row_step", "segments", "segment_step", "groups", "weight", "panel_step", "out", "out_step", "columns")
INT8_FINISH = ("to_codes", "bias", "scale", "zero", "row_scale", "row_zero", "scales_step", "sums", "real_bias")
# What a case multiplies by its numbers of rows and panels. LLVM would do it for all cases before the first row, which takes
# 30 ns (measured), as long as a product of few weights.
_HELD = ("row_step", "weight", "panel_step", "out", "out_step", "columns")


def variants(b: ir.IRBuilder, chosen: Any, cases: int) -> Iterator[int]:
    """Emit a switch over variants of a kernel: what is emitted while a case is yielded belongs to it."""
    end, unknown = b.append_basic_block("end"), b.append_basic_block("unknown")
    blocks = [b.append_basic_block(f"case{case}") for case in range(cases)]
    switch = b.switch(chosen, unknown)
    for case, block in enumerate(blocks):
        switch.add_case(number(case), block)
        b.position_at_end(block)
        yield case
        b.branch(end)
    b.position_at_end(unknown)
    b.branch(end)
    b.position_at_end(end)


def _tile(kind: int) -> Any:
    """The micro-kernels of a kind, as one function; all kinds take the same, and leave what they have no use for."""
    names = (*_OPERANDS, *INT8_FINISH, "low")

    @instruction(types.none, *[types.int64] * len(names), types.float32)
    def tile(b: Any, shape: Any, *values: Any) -> None:
        finish = _finish_int8_tile if _is_integer(kind) else _finish_float_tile
        for case in variants(b, shape, len(shapes_of(kind))):
            given: dict[str, Any] = dict(zip(names, values, strict=True))
            given |= {name: held_back(b, given[name]) for name in _HELD}
            sums = _accumulate(b, kind, *shapes_of(kind)[case], *(given[name] for name in _OPERANDS[:7]))
            finish(b, kind, sums, given)

    return tile


def _finish_float_tile(b: ir.IRBuilder, kind: int, sums: list[list[Any]], given: dict[str, Any]) -> None:
    _store_all(b, sums, given, 4, lambda total, column, _row: _finish_float(b, kind, total, given, column))


def _finish_int8_tile(b: ir.IRBuilder, _kind: int, sums: list[list[Any]], given: dict[str, Any]) -> None:
    with b.if_else(b.icmp_signed("!=", given["to_codes"], number(0))) as (codes, reals):
        with codes:
            _store_all(b, sums, given, 1, lambda total, column, _row: finish_codes(b, total, given, column))
        with reals:
            _store_all(b, sums, given, 4, lambda total, column, row: finish_real(b, total, given, column, row))


def _store_all(b: ir.IRBuilder, sums: list[list[Any]], given: dict[str, Any], size: int, finish: Any) -> None:
    for p in range(len(sums[0])):
        mask = tail_mask(b, b.sub(given["columns"], number(p * LANES)))
        for r, row in enumerate(sums):
            value = finish(row[p], number(4 * LANES * p), number(r))
            here = b.add(given["out"], b.add(b.mul(given["out_step"], number(r)), number(size * LANES * p)))
            store_first(b, here, value, mask)


# (panels, rows) of products of rows with what a call has packed itself: no bias, and a factor for each row
SCALED_SHAPES = ((2, 12), (2, 4), (2, 1), (1, 12), (1, 4), (1, 1))


@instruction(types.none, *[types.int64] * 10)
def scaled_tile(
    b: Any, shape: Any, x: Any, row_step: Any, groups: Any, weight: Any, panel_step: Any, out: Any, out_step: Any,
    columns: Any, factors: Any,
) -> None:  # fmt: skip
    """sum * factor of the row, float32; ``shape`` is a number of `SCALED_SHAPES`."""

    def finish(total: Any, _column: Any, row: Any) -> Any:
        return b.fmul(total, splat(b, load(b, b.add(factors, b.mul(row, number(4))), F32)))

    given = {"out": out, "out_step": out_step, "columns": columns}
    for case in variants(b, shape, len(SCALED_SHAPES)):
        panels, rows = SCALED_SHAPES[case]
        sums = _accumulate(b, FLOAT, panels, rows, x, row_step, number(1), number(0), groups, weight, panel_step)
        _store_all(b, sums, given, 4, finish)


float_tile, half_tile, codes_tile, int8_tile, portable_tile = (
    _tile(kind) for kind in (FLOAT, HALF, CODES, INT8, INT8_PORTABLE)
)
