"""What happens element by element, or along one row: activations, normalization, pooling, lookups, quantization.

Rows are vectors of float32 (or uint8 codes) at a fixed step from each other; images are channels-last.
"""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.exponential import exponential, softmax_row
from mlperf_opt.kernels.instruction import POSITIONS, TIME, field, operand
from mlperf_opt.kernels.jit import kernel, operation
from mlperf_opt.kernels.opcodes import DONE, OUT_OF_RANGE
from mlperf_opt.kernels.simd import (
    add,
    any_larger,
    divide,
    floats,
    larger,
    largest_of,
    load_codes,
    load_float,
    load_floats,
    load_halves,
    load_int,
    load_int32,
    load_some_bytes,
    load_some_floats,
    magnitude,
    multiply,
    multiply_add,
    nearest,
    smaller,
    smallest_of,
    store_float,
    store_floats,
    store_grid_codes,
    store_int32,
    store_some_bytes,
    subtract,
    sum_of,
)

_GELU_LINEAR = np.float32(-2 * 0.7978845608028654)
# below, gelu is less than 1e-36 in magnitude; and exp stops growing, so that a huge x would not be divided to nothing
_GELU_LOWEST = np.float32(-20)
_GELU_CUBIC = np.float32(-2 * 0.7978845608028654 * 0.044715)
_SURELY = np.float32(0.4999)
_TINY = float(np.finfo(np.float32).tiny)
_NONE = np.float32(0)
_ONE = np.float32(1)
_INFINITY = np.float32(np.inf)


@kernel()
def _gelu(x):
    """x / (1 + exp(-2 y)), y = sqrt(2/pi) (x + 0.044715 x^3): the tanh form without its cancellation."""
    x = larger(x, floats(_GELU_LOWEST))
    inner = multiply(x, multiply_add(multiply(x, x), floats(_GELU_CUBIC), floats(_GELU_LINEAR)))
    return divide(x, add(floats(_ONE), exponential(inner)))


# fields of the instructions, behind the opcode: where from, where to, the rows' steps and their width in elements
X, OUT, X_STEP, OUT_STEP, COUNT = range(1, 6)
OTHER, OTHER_STEP = 6, 7  # add: the second input


@operation()
def relu(instruction, memories, rows):
    """max(x, 0)."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    for _ in range(rows):
        for i in range(0, field(instruction, COUNT), LANES):
            store_floats(out + 4 * i, larger(load_floats(x + 4 * i), floats(_NONE)))
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


@operation()
def gelu(instruction, memories, rows):
    """gelu, in its tanh form; in place where out is x."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    for _ in range(rows):
        for i in range(0, field(instruction, COUNT), LANES):
            store_floats(out + 4 * i, _gelu(load_floats(x + 4 * i)))
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


@operation()
def add_rows(instruction, memories, rows):
    """x + y."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    other = operand(instruction, OTHER, memories)
    for _ in range(rows):
        for i in range(0, field(instruction, COUNT), LANES):
            store_floats(out + 4 * i, add(load_floats(x + 4 * i), load_floats(other + 4 * i)))
        x += field(instruction, X_STEP)
        other += field(instruction, OTHER_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


@operation()
def copy(instruction, memories, rows):
    """COUNT bytes of each row: no byte more is read or written."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    count = field(instruction, COUNT)
    for _ in range(rows):
        for i in range(0, count, LANES):
            store_some_bytes(out + i, count - i, load_some_bytes(x + i, count - i))
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


@operation()
def softmax(instruction, memories, rows):
    """softmax of each row."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    for _ in range(rows):
        softmax_row(x, out, field(instruction, COUNT))
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


GAMMA, BETA, EPS = 6, 7, 8


@operation()
def layer_norm(instruction, memories, rows):
    """(x - mean) / sqrt(variance + eps) * gamma + beta."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    gamma, beta = operand(instruction, GAMMA, memories), operand(instruction, BETA, memories)
    count, eps = field(instruction, COUNT), load_float(instruction + 8 * EPS)
    for _ in range(rows):
        total = floats(_NONE)
        for i in range(0, count, LANES):
            total = add(total, load_some_floats(x + 4 * i, count - i, _NONE))
        mean = sum_of(total) / np.float32(count)
        squares = floats(_NONE)
        for i in range(0, count, LANES):
            centred = subtract(load_some_floats(x + 4 * i, count - i, mean), floats(mean))
            squares = multiply_add(centred, centred, squares)
        inverse = floats(_ONE / np.float32(math.sqrt(sum_of(squares) / np.float32(count) + eps)))
        for i in range(0, count, LANES):
            unit = multiply(subtract(load_floats(x + 4 * i), floats(mean)), inverse)
            store_floats(out + 4 * i, multiply_add(unit, load_floats(gamma + 4 * i), load_floats(beta + 4 * i)))
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


# lookups: TABLE rows of one dtype; positions add the row of the token's place

TABLE, TABLE_STEP, TABLE_KIND, TABLE_SCALE, TABLE_ROWS = range(6, 11)
TABLE_FLOAT, TABLE_HALF, TABLE_CODES = range(3)


@kernel()
def _table_vector(kind, address, lane):
    if kind == TABLE_FLOAT:
        return load_floats(address + 4 * lane)
    if kind == TABLE_HALF:
        return load_halves(address + 2 * lane)
    return load_codes(address + lane)


@operation()
def embedding(instruction, memories, rows):
    """Row ``token`` of the table, times its scale where it holds int8 codes. OUT_OF_RANGE for a token without one."""
    tokens, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    table, scale = operand(instruction, TABLE, memories), operand(instruction, TABLE_SCALE, memories)
    kind, step, size = field(instruction, TABLE_KIND), field(instruction, TABLE_STEP), field(instruction, TABLE_ROWS)
    for row in range(rows):
        token = load_int(tokens + 8 * row)
        if token < 0 or token >= size:
            return OUT_OF_RANGE
        factor = floats(_ONE)
        if kind == TABLE_CODES:
            factor = floats(load_float(scale + 4 * token))
        for i in range(0, field(instruction, COUNT), LANES):
            store_floats(out + 4 * i, multiply(_table_vector(kind, table + token * step, i), factor))
        out += field(instruction, OUT_STEP)
    return DONE


OFFSETS = 11  # 1 where each sequence has a position of its own


@operation()
def positions(instruction, memories, rows):
    """x + the table's row of the place; a place behind the last takes the last (padding, whose outputs nobody uses)."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    table, offsets = operand(instruction, TABLE, memories), field(memories, POSITIONS)
    kind, step, last = field(instruction, TABLE_KIND), field(instruction, TABLE_STEP), field(instruction, TABLE_ROWS) - 1
    time = field(memories, TIME)
    for sequence in range(rows // time):
        first = 0
        if field(instruction, OFFSETS):
            first = load_int(offsets + 8 * sequence)
        for t in range(time):
            place = table + min(first + t, last) * step
            for i in range(0, field(instruction, COUNT), LANES):
                store_floats(out + 4 * i, add(load_floats(x + 4 * i), _table_vector(kind, place, i)))
            x += field(instruction, X_STEP)
            out += field(instruction, OUT_STEP)
    return DONE


# quantization to uint8: (x / scale) rounded half to even, + zero, saturated

SCALE, ZERO, PER_ROW = 6, 7, 8


@kernel()
def quantize_row(x, out, count, scale, zero):
    """Codes of ``count`` floats.

    x / scale is rounded once as a float and then to a whole number. Multiplying by 1 / scale instead (a quarter of the time)
    differs by at most 3 units in the last place, 1e-4 for codes up to 510, which matters only within 1e-4 of a half: there,
    and where the inverse is no ordinary float, the division decides.
    """
    inverse = floats(_ONE / scale)
    ordinary = scale > np.float32(1e-30) and scale < np.float32(1e30)
    for i in range(0, count, LANES):
        value = load_some_floats(x + 4 * i, count - i, _NONE)
        quotient = multiply(value, inverse)
        whole = nearest(quotient)
        if not ordinary or any_larger(magnitude(subtract(quotient, whole)), floats(_SURELY)):
            whole = nearest(divide(value, floats(scale)))
        store_grid_codes(out + i, whole, zero, count - i)


@operation()
def quantize(instruction, memories, rows):
    """uint8 codes on one grid, or on one for each row."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    scale, zero = operand(instruction, SCALE, memories), operand(instruction, ZERO, memories)
    step = 4 * field(instruction, PER_ROW)
    for row in range(rows):
        quantize_row(x, out, field(instruction, COUNT), load_float(scale + step * row), load_int32(zero + step * row))
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


@operation()
def row_grids(instruction, memories, rows):
    """The affine grid of each row's own range (see `ops.quantized.affine_range`): scale float32, zero point as int32."""
    x = operand(instruction, X, memories)
    scale_out, zero_out = operand(instruction, SCALE, memories), operand(instruction, ZERO, memories)
    count = field(instruction, COUNT)
    for row in range(rows):
        low, high = floats(_NONE), floats(_NONE)
        for i in range(0, count, LANES):
            value = load_some_floats(x + 4 * i, count - i, _NONE)
            low, high = smaller(low, value), larger(high, value)
        least, most = np.float64(smallest_of(low)), np.float64(largest_of(high))  # float() would leave them float32
        scale = np.float32(max((most - least) / 255.0, _TINY))
        if most <= least:
            scale = _ONE
        zero = int(min(max(np.rint(-least / np.float64(scale)), 0.0), 255.0))
        store_float(scale_out + 4 * row, scale)
        store_int32(zero_out + 4 * row, zero)
        x += field(instruction, X_STEP)
    return DONE
