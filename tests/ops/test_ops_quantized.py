"""Quantized ops against exact integers: accumulators, rounding half to even, saturation, zero points, scales."""

from fractions import Fraction

import numpy as np
import op_oracles as oracle
import pytest

from mlperf_opt.ops import OPS

ONE, ZERO = np.ones((), np.float32), np.zeros((), np.uint8)
UNIT = (ONE, ZERO)


def _u8(rng, *shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def _s8(rng, *shape):
    return rng.integers(-127, 128, shape).astype(np.int8)


def _exact_acc(x, zero, weight, bias):
    """sum (x - zero) * w + bias in Python integers, as an object array."""
    centred = x.astype(object) - np.asarray(zero).astype(object)
    acc = centred @ weight.T.astype(object)
    return acc if bias is None else acc + bias.astype(object)


def _code(acc, m, y_zero):
    """float32(acc) * m in one rounding, half to even, plus the zero point, clipped; m and acc as exact fractions."""
    product = np.float32(float(Fraction(float(np.float32(acc))) * Fraction(float(m))))
    return min(max(round(Fraction(float(product))) + y_zero, 0), 255)


@pytest.mark.parametrize("k", [1, 3, 517, 518, 519, 1024, 2000])
@pytest.mark.parametrize(
    "x_code, zero, w_code", [(255, 0, 127), (255, 0, -127), (0, 255, 127), (255, 1, 127), (254, 3, -125)]
)
def test_accumulator_is_exact_at_the_extremes(k, x_code, zero, w_code):
    """All codes equal and one weight off by one: 24 bits of mantissa are not enough beyond K = 518."""
    x, weight = np.full((1, k), x_code, np.uint8), np.full((2, k), w_code, np.int8)
    weight[1, -1] -= np.sign(w_code)
    # a bias cancels the large part, so that the float32 result shows the last bit of the accumulator
    expected = [k * (x_code - zero) * w_code, (k * w_code - int(np.sign(w_code))) * (x_code - zero)]
    bias = np.array([-value + 7 for value in expected], np.int32)
    found = OPS["qlinear"].forward(x, ONE, np.uint8(zero), weight, ONE, bias, None, None)
    np.testing.assert_array_equal(found, [[7, 7]])


@pytest.mark.parametrize("k", [5, 518, 519, 2000])
@pytest.mark.parametrize("zero", [0, 128, 255])
def test_accumulator_is_exact_for_random_codes(rng, k, zero):
    x, weight = _u8(rng, 3, k), _s8(rng, 4, k)
    exact = _exact_acc(x, zero, weight, None)
    bias = np.asarray([-int(exact[0, m]) for m in range(4)], np.int32)
    found = OPS["qlinear"].forward(x, ONE, np.uint8(zero), weight, ONE, bias, None, None)
    np.testing.assert_array_equal(found.astype(np.float64), (exact + bias).astype(np.float32).astype(np.float64))


@pytest.mark.parametrize("acc, expected", [(1, 0), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2), (-5, -2), (2, 1), (-7, -4)])
@pytest.mark.parametrize("y_zero", [100, 101])
def test_requantize_rounds_half_to_even_before_the_zero_point(acc, expected, y_zero):
    """acc * 0.5 is exactly between two codes: the even product wins, whatever the zero point."""
    x, weight = np.array([[abs(acc)]], np.uint8), np.array([[np.sign(acc)]], np.int8)
    found = OPS["qlinear"].forward(x, *UNIT, weight, ONE, None, np.float32(2), np.uint8(y_zero))
    np.testing.assert_array_equal(found, [[expected + y_zero]])
    assert found.dtype == np.uint8


@pytest.mark.parametrize("y_zero, low, high", [(0, 0, 255), (128, 0, 255), (255, 0, 255)])
def test_requantize_saturates_at_both_ends(y_zero, low, high):
    x, weight = np.full((1, 2000), 255, np.uint8), np.full((2, 2000), 127, np.int8)
    weight[1] = -127
    found = OPS["qlinear"].forward(x, *UNIT, weight, ONE, None, np.float32(1e-6), np.uint8(y_zero))
    np.testing.assert_array_equal(found, [[high, low]])


@pytest.mark.parametrize("x_scale", [0.02, 3.0])
def test_an_output_that_was_always_zero_keeps_its_zero(x_scale):
    """The smallest scale makes the multiplier overflow; code 0 * m is still zero and the rest saturates."""
    tiny = np.float32(np.finfo(np.float32).tiny)
    x, weight = np.array([[0, 0], [255, 255], [0, 255]], np.uint8), np.array([[127, 127]], np.int8)
    found = OPS["qlinear"].forward(x, np.float32(x_scale), ZERO, weight, np.float32(9), None, tiny, np.uint8(9))
    np.testing.assert_array_equal(found, [[9], [255], [255]])


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("x_zero, y_zero", [(0, 0), (128, 37), (255, 255)])
@pytest.mark.parametrize("k", [7, 600])
def test_qlinear_codes_are_the_integer_formula(rng, per_channel, with_bias, x_zero, y_zero, k):
    x, weight = _u8(rng, 3, k), _s8(rng, 5, k)
    x_scale, y_scale = np.float32(0.013), np.float32(0.31 * np.sqrt(k))
    w_scale = rng.uniform(0.005, 0.05, 5 if per_channel else ()).astype(np.float32)
    w_scale = np.asarray(w_scale)
    bias = rng.integers(-5000, 5000, 5).astype(np.int32) if with_bias else None
    acc = _exact_acc(x, x_zero, weight, bias)
    m = np.broadcast_to(x_scale * w_scale / y_scale, 5)
    assert m.dtype == np.float32
    expected = [[_code(acc[n, c], m[c], y_zero) for c in range(5)] for n in range(3)]
    found = OPS["qlinear"].forward(x, x_scale, np.uint8(x_zero), weight, w_scale, bias, y_scale, np.uint8(y_zero))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("stride, padding", [(1, 1), (2, 0), (2, 2)])
@pytest.mark.parametrize("x_zero", [0, 77, 255])
@pytest.mark.parametrize("with_bias", [True, False])
def test_qconv2d_codes_are_the_integer_formula_and_padding_is_real_zero(rng, stride, padding, x_zero, with_bias):
    x, weight = _u8(rng, 2, 2, 5, 4), _s8(rng, 3, 2, 3, 3)
    bias = rng.integers(-3000, 3000, 3).astype(np.int32) if with_bias else None
    w_scale, x_scale, y_scale = np.array([0.01, 0.02, 0.5], np.float32), np.float32(0.05), np.float32(1.7)
    acc = oracle.conv2d(x.astype(np.int64) - x_zero, weight, bias, stride, padding)
    m = x_scale * w_scale / y_scale
    expected = np.zeros(acc.shape)
    for place in np.ndindex(acc.shape):
        expected[place] = _code(acc[place], m[place[1]], 120)
    grid = (x_scale, np.uint8(x_zero))
    attributes = {"stride": stride, "padding": padding}
    found = OPS["qconv2d"].forward(x, *grid, weight, w_scale, bias, y_scale, np.uint8(120), **attributes)
    np.testing.assert_array_equal(found, expected)
    real = OPS["qconv2d"].forward(x, *grid, weight, w_scale, bias, None, None, **attributes)
    np.testing.assert_array_equal(real, acc.astype(np.float32) * (x_scale * w_scale).reshape(3, 1, 1))


def test_dynamic_scales_are_per_row_and_the_float_bias_comes_last(rng):
    x, weight = (rng.normal(size=(4, 6)) * [[1], [100], [0.01], [0]]).astype(np.float32), _s8(rng, 3, 6)
    bias, w_scale = rng.normal(size=3).astype(np.float32), np.array([0.01, 0.1, 1], np.float32)
    scale, zero = OPS["row_scale"].forward(x, axes=1), OPS["row_zero"].forward(x, axes=1)
    for row in range(4):
        width = max(float(x[row].max()), 0) - min(float(x[row].min()), 0)
        assert scale[row, 0] == (np.float32(width / 255) if width else 1)
    codes = OPS["quantize"].forward(x, scale, zero)
    found = OPS["qlinear"].forward(codes, scale, zero, weight, w_scale, bias, None, None)
    acc = _exact_acc(codes, zero, weight, None).astype(np.float32)
    np.testing.assert_array_equal(found, acc * (scale * w_scale) + bias)
    np.testing.assert_array_equal(found[3], bias)
    wide = x.astype(np.float64) @ (weight * w_scale.astype(np.float64)[:, None]).T + bias
    budget = 0.5 * scale.astype(np.float64) * np.abs(weight * w_scale.astype(np.float64)[:, None]).sum(1)
    assert (np.abs(found - wide) <= budget * 1.001 + 1e-5).all()


def test_dynamic_convolution_scales_each_image(rng):
    x = (rng.normal(size=(2, 1, 4, 4)) * np.array([1, 50]).reshape(2, 1, 1, 1)).astype(np.float32)
    weight, w_scale = _s8(rng, 2, 1, 3, 3), np.array([0.1, 0.02], np.float32)
    scale, zero = OPS["row_scale"].forward(x, axes=3), OPS["row_zero"].forward(x, axes=3)
    codes = OPS["quantize"].forward(x, scale, zero)
    both = OPS["qconv2d"].forward(codes, scale, zero, weight, w_scale, None, None, None, stride=1, padding=1)
    for n in range(2):
        acc = oracle.conv2d(codes[n : n + 1].astype(np.int64) - int(zero[n].item()), weight, None, 1, 1)
        np.testing.assert_array_equal(both[n], acc[0].astype(np.float32) * (scale[n] * w_scale.reshape(2, 1, 1)))


@pytest.mark.parametrize("zero", [0, 128, 255])
def test_quantize_rounds_half_to_even_and_saturates(zero):
    x = np.array([0, 0.25, 0.75, 1.25, -0.25, -0.75, 1e30, -1e30, 3.4e38, -3.4e38], np.float32)
    steps = [0, 0, 2, 2, 0, -2, 10**9, -(10**9), 10**9, -(10**9)]
    expected = [min(max(step + zero, 0), 255) for step in steps]
    found = OPS["quantize"].forward(x, np.float32(0.5), np.uint8(zero))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("zero", [0, 100, 255, None])
def test_dequantize_is_code_minus_zero_times_scale(zero):
    codes = np.arange(256, dtype=np.uint8) if zero is not None else np.arange(-128, 128).astype(np.int8)
    scale = np.float32(0.1)
    expected = [float(np.float32(int(code) - (zero or 0)) * scale) for code in codes]
    found = OPS["dequantize"].forward(codes, scale, None if zero is None else np.uint8(zero))
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


@pytest.mark.parametrize("per_row", [True, False])
def test_qembedding_is_the_code_of_the_row_times_its_scale(rng, per_row):
    table = _s8(rng, 4, 3)
    scale = np.array([0.5, 0.25, 2, 0.125], np.float32) if per_row else np.float32(0.5).reshape(())
    tokens = np.array([[3, 0, 1], [1, 2, 2]])
    expected = [[[int(c) * float(scale[t] if per_row else scale) for c in table[t]] for t in row] for row in tokens]
    np.testing.assert_array_equal(OPS["qembedding"].forward(tokens, table, scale), expected)


def test_quantize_of_its_own_dequantized_codes_is_the_identity():
    codes = np.arange(256, dtype=np.uint8)
    for scale in (np.float32(0.1), np.float32(1e-30), np.float32(7e30)):
        for zero in (np.uint8(0), np.uint8(91), np.uint8(255)):
            real = OPS["dequantize"].forward(codes, scale, zero)
            np.testing.assert_array_equal(OPS["quantize"].forward(real, scale, zero), codes)
