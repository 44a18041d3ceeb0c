"""exp, and the softmax that is made of it."""

from __future__ import annotations

import numpy as np

from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.jit import kernel
from mlperf_opt.kernels.simd import (
    add,
    floats,
    larger,
    largest_of,
    load_floats,
    load_some_floats,
    multiply,
    multiply_add,
    nearest,
    power_of_two,
    smaller,
    store_floats,
    store_some_floats,
    subtract,
    sum_of,
)

_LOG2E = np.float32(1.4426950408889634)
# ln 2 in two parts, so that x - n ln 2 keeps its last bits (Cody and Waite)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# exp(r) = 1 + r + r^2 P(r) on |r| <= ln 2 / 2: minimax coefficients of Cephes' expf, highest first
_EXP = tuple(
    np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
)
_SMALLEST_EXPONENT, _LARGEST_EXPONENT = np.float32(-87.0), np.float32(88.0)
_NONE, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)


@kernel()
def exponential(x):
    """exp of 16 floats, within 2 units in the last place; below -87 it stays at exp(-87)."""
    x = smaller(larger(x, floats(_SMALLEST_EXPONENT)), floats(_LARGEST_EXPONENT))
    whole = nearest(multiply(x, floats(_LOG2E)))
    r = multiply_add(whole, floats(-_LN2_HIGH), x)
    r = multiply_add(whole, floats(-_LN2_LOW), r)
    p = floats(_EXP[0])
    p = multiply_add(p, r, floats(_EXP[1]))
    p = multiply_add(p, r, floats(_EXP[2]))
    p = multiply_add(p, r, floats(_EXP[3]))
    p = multiply_add(p, r, floats(_EXP[4]))
    p = multiply_add(p, r, floats(_EXP[5]))
    p = multiply_add(multiply(p, r), r, add(r, floats(_ONE)))
    return multiply(p, power_of_two(whole))


@kernel()
def exponentials(x, out, count):
    """Write exp(x - the largest of the row) for ``count`` floats at x; in place where out is x. Return their sum."""
    whole = count // LANES * LANES
    top = load_some_floats(x + 4 * whole, count - whole, -_INFINITY)
    for i in range(0, whole, LANES):
        top = larger(load_floats(x + 4 * i), top)
    highest = floats(largest_of(top))
    total = floats(_NONE)
    for i in range(0, whole, LANES):
        value = exponential(subtract(load_floats(x + 4 * i), highest))
        total = add(total, value)
        store_floats(out + 4 * i, value)
    if whole < count:  # the lanes behind the end are exp(-87): nothing beside a sum of at least 1
        value = exponential(subtract(load_some_floats(x + 4 * whole, count - whole, -_INFINITY), highest))
        total = add(total, value)
        store_some_floats(out + 4 * whole, count - whole, value)
    return sum_of(total)


@kernel()
def softmax_row(x, out, count):
    """softmax of ``count`` floats at x; in place where out is x."""
    factor = floats(_ONE / exponentials(x, out, count))
    whole = count // LANES * LANES
    for i in range(0, whole, LANES):
        store_floats(out + 4 * i, multiply(load_floats(out + 4 * i), factor))
    if whole < count:
        last = out + 4 * whole
        store_some_floats(last, count - whole, multiply(load_some_floats(last, count - whole, _NONE), factor))
