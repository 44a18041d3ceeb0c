"""linear on pruned weights: what is zero is neither stored nor multiplied.

A weight is a matrix of words of four bytes: one float32, or the int8 codes of four inputs side by side, which one vpdpbusd
multiplies; a word is left out where all of it is zero. Any x of the same rows are words too. Two layouts:

    few rows    sliced ELL (Kreutzer et al., arXiv:1307.6209): 16 columns side by side, sorted by their number of words, so
                that those of one panel are about equally long; the shorter ones are filled up with zeros.
                    sum[c] += values[entry][c] * x[places[entry][c]]        one gather of 16 inputs
                values [panel][entry][16 words], places the same in uint16, starts [panels + 1] in entries, order: the
                columns of a panel, int32.
    many rows   one column after the other, on a block of x that was transposed before, [input][16, 32 or 64 rows].
                    sum[rows] += values[entry] * x[places[entry]][rows]     one weight in all lanes
                values [column][entry] words, places the same in uint16, starts [columns + 1] in entries.

Both leave sums in a scratch buffer, from where they are finished like those of the dense kernels. int8 sums are exact, so
the results are those of the dense kernels bit for bit; float32 sums are added in another order. An x that is not finite is
hidden by a weight of zero, which a dense product would not do.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from mlperf_opt.kernels.emit import (
    F32,
    I16,
    I32,
    I64,
    LANES,
    constant,
    instruction,
    lanes_of,
    load,
    number,
    splat,
    store,
    store_first,
    tail_mask,
)  # fmt: skip
from mlperf_opt.kernels.instruction import field, operand
from mlperf_opt.kernels.jit import kernel, operation
from mlperf_opt.kernels.lanes import gather, scatter, transpose
from mlperf_opt.kernels.opcodes import DONE
from mlperf_opt.kernels.product import (
    BIAS,
    COLUMNS,
    LOW,
    OUT,
    OUT_ROW_STEP,
    PANELS,
    REAL_BIAS,
    ROW_SCALE,
    ROW_STEP,
    ROW_ZERO,
    SCALE,
    SCALES_ROW_STEP,
    SUMS,
    TO_CODES,
    ZERO,
    X,
)  # fmt: skip
from mlperf_opt.kernels.simd import load_float, load_int32
from mlperf_opt.kernels.tiles import (
    FLOAT,
    INT8,
    INT8_FINISH,
    INT8_PORTABLE,
    finish_codes,
    finish_real,
    multiply_accumulate,
    variants,
)  # fmt: skip

PLAN = 31  # field of the instruction, whose others are those of the dense product: the reference to a plan
# A plan: int64 at these places. FEW_MOST: up to that number of rows the first layout is used; MANY_FROM: from that number
# on the second; between them the dense product, whose opcode is DENSE.
(
    FEW_MOST, MANY_FROM, DENSE, ARITHMETIC, WORDS, SCRATCH, FEW_VALUES, FEW_PLACES, FEW_STARTS, FEW_ORDER, MANY_VALUES,
    MANY_PLACES, MANY_STARTS,
) = range(13)  # fmt: skip
PLAN_WIDTH = 13
KINDS = (FLOAT, INT8, INT8_PORTABLE)  # what ARITHMETIC counts
FEW_UNROLL, MANY_UNROLL = 2, 4  # entries of a panel and of a column come in multiples: sums of their own hide the latency
_WIDTHS = (1, 2, 4)  # of a block, in vectors of rows
BLOCK = LANES * _WIDTHS[-1]
_WORD = 4


def scratch_bytes(words: int, panels: int, rows: int) -> int:
    """Room that a product wants: a transposed block of x, 16 columns of sums and their transposition; or one row of sums."""
    wide = next((LANES * width for width in _WIDTHS if rows <= LANES * width), BLOCK)
    return max(_WORD * (-(-words // LANES) * LANES + 2 * LANES) * wide, _WORD * LANES * panels)


def _zeros(b: ir.IRBuilder, kind: int, count: int) -> list[Any]:
    vector = lanes_of(F32 if kind == FLOAT else I32)
    slots = [cgutils.alloca_once(b, vector) for _ in range(count)]  # LLVM keeps them in registers
    for slot in slots:
        b.store(constant(vector, 0.0 if kind == FLOAT else 0), slot)
    return slots


def _total(b: ir.IRBuilder, kind: int, slots: list[Any]) -> Any:
    """The sum of the slots, by halves."""
    values = [b.load(slot) for slot in slots]
    while len(values) > 1:
        add = b.fadd if kind == FLOAT else b.add
        values = [add(p, q) for p, q in zip(values[::2], values[1::2], strict=True)]
    return values[0]


@instruction(types.none, *[types.int64] * 7)
def _panel_sums(b: Any, arithmetic: Any, x: Any, values: Any, places: Any, entries: Any, order: Any, sums: Any) -> None:
    """Sums of 16 columns of one row, scattered to where their columns are."""
    for case in variants(b, arithmetic, len(KINDS)):
        kind = KINDS[case]
        element = F32 if kind == FLOAT else I32
        slots = _zeros(b, kind, FEW_UNROLL)
        with cgutils.for_range(b, b.sdiv(entries, number(FEW_UNROLL)), intp=I64) as step:
            for i, slot in enumerate(slots):
                entry = b.add(b.mul(step.index, number(FEW_UNROLL)), number(i))
                here = load(b, b.add(places, b.mul(entry, number(2 * LANES))), lanes_of(I16))
                weight = load(b, b.add(values, b.mul(entry, number(_WORD * LANES))), lanes_of(element))
                b.store(multiply_accumulate(b, kind, b.load(slot), gather(b, x, here, element), weight), slot)
        scatter(b, sums, load(b, order, lanes_of(I32)), _total(b, kind, slots))


@instruction(types.none, *[types.int64] * 6)
def _column_sums(b: Any, variant: Any, x: Any, values: Any, places: Any, entries: Any, sums: Any) -> None:
    """Sums of one column of a block of rows. ``variant``: 3 x arithmetic + number of the width."""
    for case in variants(b, variant, len(KINDS) * len(_WIDTHS)):
        kind, width = KINDS[case // len(_WIDTHS)], _WIDTHS[case % len(_WIDTHS)]
        element = F32 if kind == FLOAT else I32
        slots = [_zeros(b, kind, MANY_UNROLL) for _ in range(width)]
        with cgutils.for_range(b, b.sdiv(entries, number(MANY_UNROLL)), intp=I64) as step:
            for i in range(MANY_UNROLL):
                entry = b.add(b.mul(step.index, number(MANY_UNROLL)), number(i))
                place = b.zext(load(b, b.add(places, b.mul(entry, number(2))), I16), I64)
                weight = splat(b, load(b, b.add(values, b.mul(entry, number(_WORD))), element))
                start = b.add(x, b.mul(place, number(_WORD * LANES * width)))
                for v in range(width):
                    rows = load(b, b.add(start, number(_WORD * LANES * v)), lanes_of(element))
                    b.store(multiply_accumulate(b, kind, b.load(slots[v][i]), rows, weight), slots[v][i])
        for v in range(width):
            store(b, b.add(sums, number(_WORD * LANES * v)), _total(b, kind, slots[v]))


@instruction(types.none, *[types.int64] * (6 + len(INT8_FINISH)), types.float32)
def _finish(b: Any, is_float: Any, sums: Any, out: Any, columns: Any, column: Any, row: Any, *values: Any) -> None:
    """Finish 16 sums of one row as the dense kernels do; ``column``: bytes before them in arrays of one number a column."""
    given: dict[str, Any] = dict(zip((*INT8_FINISH, "low"), values, strict=True))
    mask = tail_mask(b, columns)
    with b.if_else(b.icmp_signed("!=", is_float, number(0))) as (floats, integers):
        with floats:
            total = b.fadd(load(b, sums, lanes_of(F32)), load(b, b.add(given["bias"], column), lanes_of(F32)))
            low = splat(b, given["low"])
            store_first(b, out, b.select(b.fcmp_ordered("<", total, low), low, total), mask)
        with integers:
            total = load(b, sums, lanes_of(I32))
            with b.if_else(b.icmp_signed("!=", given["to_codes"], number(0))) as (codes, reals):
                with codes:
                    store_first(b, out, finish_codes(b, total, given, column), mask)
                with reals:
                    store_first(b, out, finish_real(b, total, given, column, row), mask)


@kernel()
def _finishing(instruction_, memories):
    """What `_finish` is given of the instruction, read once."""
    return (
        field(instruction_, TO_CODES), operand(instruction_, BIAS, memories), operand(instruction_, SCALE, memories),
        field(instruction_, ZERO), operand(instruction_, ROW_SCALE, memories), operand(instruction_, ROW_ZERO, memories),
        field(instruction_, SCALES_ROW_STEP), operand(instruction_, SUMS, memories),
        operand(instruction_, REAL_BIAS, memories), load_float(instruction_ + 8 * LOW),
    )  # fmt: skip


@kernel()
def _few_rows(instruction_, memories, plan, rows):
    arithmetic, sums, finishing = (
        field(plan, ARITHMETIC),
        operand(plan, SCRATCH, memories),
        _finishing(instruction_, memories),
    )
    values, places = operand(plan, FEW_VALUES, memories), operand(plan, FEW_PLACES, memories)
    starts, order = operand(plan, FEW_STARTS, memories), operand(plan, FEW_ORDER, memories)
    panels, columns = field(instruction_, PANELS), field(instruction_, COLUMNS)
    out_bytes = LANES if finishing[0] else 4 * LANES
    for row in range(rows):
        x = operand(instruction_, X, memories) + row * field(instruction_, ROW_STEP)
        for panel in range(panels):
            first, end = load_int32(starts + 4 * panel), load_int32(starts + 4 * panel + 4)
            _panel_sums(arithmetic, x, values + 64 * first, places + 32 * first, end - first, order + 64 * panel, sums)
        out = operand(instruction_, OUT, memories) + row * field(instruction_, OUT_ROW_STEP)
        for panel in range(panels):
            _finish(
                arithmetic == 0, sums + 64 * panel, out + out_bytes * panel, columns - LANES * panel, 64 * panel, row,
                *finishing,
            )  # fmt: skip


@kernel()
def _many_rows(instruction_, memories, plan, rows):
    arithmetic, words, finishing = field(plan, ARITHMETIC), field(plan, WORDS), _finishing(instruction_, memories)
    values, places = operand(plan, MANY_VALUES, memories), operand(plan, MANY_PLACES, memories)
    starts, block = operand(plan, MANY_STARTS, memories), operand(plan, SCRATCH, memories)
    columns, row_step = field(instruction_, COLUMNS), field(instruction_, ROW_STEP)
    out_step, out_bytes = field(instruction_, OUT_ROW_STEP), LANES if finishing[0] else 4 * LANES
    first = 0
    while first < rows:
        left = rows - first
        width = 0 if left <= LANES else 1 if left <= 2 * LANES else 2  # number of the width
        vectors = 1 << width
        step = 64 * vectors
        sums = block + (words + LANES - 1) // LANES * LANES * step
        turned = sums + LANES * step
        x = operand(instruction_, X, memories) + first * row_step
        for v in range(vectors):
            line, last = x + min(LANES * v, left - 1) * row_step, max(0, min(left - LANES * v, LANES) - 1)
            for word in range(0, words, LANES):
                transpose(line + 4 * word, row_step, last, words - word, block + word * step + 64 * v, step)
        for panel in range(field(instruction_, PANELS)):
            for column in range(LANES * panel, min(LANES * (panel + 1), columns)):
                start, end = load_int32(starts + 4 * column), load_int32(starts + 4 * column + 4)
                _column_sums(
                    3 * arithmetic + width, block, values + 4 * start, places + 2 * start, end - start,
                    sums + (column - LANES * panel) * step,
                )  # fmt: skip
            for v in range(vectors):
                transpose(sums + 64 * v, step, LANES - 1, LANES, turned, 64)
                row = first + LANES * v
                out = operand(instruction_, OUT, memories) + row * out_step + panel * out_bytes
                for i in range(min(left - LANES * v, LANES)):
                    _finish(
                        arithmetic == 0, turned + 64 * i, out + i * out_step, columns - LANES * panel, 64 * panel, row + i,
                        *finishing,
                    )  # fmt: skip
        first += LANES * vectors


@operation()
def sparse_product(instruction_, memories, rows):
    """Run one product of a linear layer, or leave it to the dense kernels.

    Returns:
        DONE, or the opcode of the dense product that is to run on the same instruction.
    """
    plan = operand(instruction_, PLAN, memories)
    if rows >= field(plan, MANY_FROM):
        _many_rows(instruction_, memories, plan, rows)
    elif rows <= field(plan, FEW_MOST):
        _few_rows(instruction_, memories, plan, rows)
    else:
        return field(plan, DENSE)
    return DONE
