"""The affine grid: for any finite range the scale is usable, zero is exact and the round trip stays within half a step."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlperf_opt.graph import Affine, Weight
from mlperf_opt.ops import OPS
from mlperf_opt.ops.quantized import affine_range

TINY = float(np.finfo(np.float32).tiny)
LARGEST = 3.3e38  # the grid's ends lie up to half a step beyond the range: further out they are no float32
finite = st.floats(float(np.float32(-3.3e38)), float(np.float32(3.3e38)), width=32, allow_nan=False, allow_infinity=False)


def _check_grid(a, b, fractions):
    low, high = np.float32(min(a, b)), np.float32(max(a, b))
    scale, zero = affine_range(low, high)
    assert (scale.dtype, zero.dtype) == (np.float32, np.uint8)
    assert np.isfinite(scale) and scale > 0
    grid = (np.asarray(scale), np.asarray(zero))
    code = OPS["quantize"].forward(np.zeros(1, np.float32), *grid)
    assert code[0] == zero
    assert OPS["dequantize"].forward(code, *grid)[0] == 0
    inside = [float(low) + f * (float(high) - float(low)) for f in fractions]
    x = np.array([low, high, *inside], np.float32).clip(low, high)
    back = OPS["dequantize"].forward(OPS["quantize"].forward(x, *grid), *grid)
    error = np.abs(back.astype(np.float64) - x.astype(np.float64))
    ulp = np.abs(x.astype(np.float64)) * 2.0**-22
    assert (error <= float(scale) / 2 + ulp + 1e-45).all(), (low, high, scale, zero, error)


@settings(max_examples=400, deadline=None)
@given(finite, finite, st.lists(st.floats(0, 1), max_size=8))
@example(0.0, 0.0, [])
@example(5.0, 6.0, [0.5])
@example(-6.0, -5.0, [0.5])
@example(0.25, 0.25, [])
@example(-1e-10, 1e-10, [0.3, 0.7])
@example(1e-45, 1e-45, [])
@example(-1e-40, 2e-39, [0.5])
@example(-3e38, 3e38, [0.1, 0.5, 0.9])
@example(-LARGEST, LARGEST, [0.25])
@example(LARGEST, LARGEST, [])
@example(0.0, TINY * 255, [0.5])
def test_any_finite_range_gives_a_usable_grid(a, b, fractions):
    with np.errstate(all="raise", under="ignore"):
        _check_grid(a, b, fractions)


@pytest.mark.parametrize(
    "low, high, zero", [(0, 255, 0), (-255, 0, 255), (-128, 127, 128), (5, 6, 0), (-6, -5, 255), (0, 0, 0)]
)
def test_zero_point(low, high, zero):
    assert affine_range(np.float32(low), np.float32(high))[1] == zero


@pytest.mark.parametrize("low, high, width", [(0, 255, 255), (-255, 0, 255), (5, 6, 6), (-6, -5, 6), (-3, 2, 5)])
def test_scale_covers_the_range_and_zero(low, high, width):
    assert affine_range(np.float32(low), np.float32(high))[0] == np.float32(width / 255)


def test_a_range_of_nothing_but_zero_keeps_the_bias_behind_it():
    """A dead layer's grid must leave the next layer's bias (int32 at x_scale * w_scale) its value."""
    scale, zero = affine_range(np.float32(0), np.float32(0))
    bias = Weight(np.zeros(1, np.int32), Affine(scale * np.float32(0.01), None, 31)).encode(np.array([0.37], np.float32))
    codes = np.full((1, 2), zero, np.uint8)
    w = (np.ones((1, 2), np.int8), np.float32(0.01))
    found = OPS["qlinear"].forward(codes, scale, zero, *w, bias.values, None, None)
    np.testing.assert_allclose(found, [[0.37]], atol=0.005)


def test_ranges_of_rows_are_independent(rng):
    low = -rng.uniform(0, 5, (4, 1)).astype(np.float32)
    high = rng.uniform(0, 5, (4, 1)).astype(np.float32)
    scale, zero = affine_range(low, high)
    for row in range(4):
        one_scale, one_zero = affine_range(low[row, 0], high[row, 0])
        assert (scale[row, 0], zero[row, 0]) == (one_scale, one_zero)
