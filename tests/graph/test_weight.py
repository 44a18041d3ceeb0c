"""Weight: the real values of codes, the way back, immutability."""

import numpy as np
import pytest

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Affine, Weight

SCALE = np.array([0.5, 0.25, 2.0], np.float32)


@pytest.mark.parametrize("axis, scale", [(0, SCALE[:2]), (1, SCALE), (None, np.float32(0.5).reshape(()))])
@pytest.mark.parametrize("dtype, bits", [(np.int8, 8), (np.int8, 4), (np.int32, 32)])
def test_affine_codes_mean_code_times_scale_and_come_back(axis, scale, dtype, bits):
    codes = np.array([[-7, 0, 7], [3, -2, 1]], dtype)
    weight = Weight(codes, Affine(scale, axis, bits))
    expected = [
        [int(codes[i, j]) * float(scale if axis is None else scale[(i, j)[axis]]) for j in range(3)] for i in range(2)
    ]
    real = weight.dense()
    np.testing.assert_array_equal(real, expected)
    assert real.dtype == np.float32
    again = weight.encode(real)
    np.testing.assert_array_equal(again.values, codes)
    assert again.values.dtype == dtype and again.encoding.bits == bits


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dense_values_come_back(dtype):
    values = np.array([0.1, -2.5, 60000], dtype)
    weight = Weight(values)
    np.testing.assert_array_equal(weight.dense(), values.astype(np.float32))
    again = weight.encode(weight.dense())
    np.testing.assert_array_equal(again.values, values)
    assert again.values.dtype == dtype


@pytest.mark.parametrize(
    "bits, dtype, end", [(8, np.int8, 127), (4, np.int8, 7), (2, np.int8, 1), (32, np.int32, 2**31 - 1)]
)
def test_encode_saturates_symmetrically(bits, dtype, end):
    weight = Weight(np.zeros(4, dtype), Affine(np.float32(0.5), None, bits))
    found = weight.encode(np.array([1e30, -1e30, 0.24, -0.26], np.float32))
    np.testing.assert_array_equal(found.values, [end, -end, 0, -1])


def test_encode_rounds_half_to_even():
    weight = Weight(np.zeros(4, np.int8), Affine(np.float32(2), None, 8))
    np.testing.assert_array_equal(weight.encode(np.array([1, 3, 5, -1], np.float32)).values, [0, 2, 2, 0])


def test_encode_keeps_float16_finite():
    found = Weight(np.zeros(3, np.float16)).encode(np.array([1e6, -1e6, 1], np.float32))
    np.testing.assert_array_equal(found.values, np.array([65504, -65504, 1], np.float16))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoded", [False, True])
def test_encode_refuses_what_is_not_finite(encoded, value):
    weight = Weight(np.zeros(1, np.int8), Affine(np.float32(1), None, 8)) if encoded else Weight(np.zeros(1, np.float32))
    with pytest.raises(GraphError, match="not finite"):
        weight.encode(np.array([value], np.float32))


def test_encode_of_small_integers_rounds_and_saturates():
    found = Weight(np.zeros(4, np.uint8)).encode(np.array([-3, 1.5, 300, 2.5], np.float32))
    np.testing.assert_array_equal(found.values, [0, 2, 255, 2])


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3).T, np.arange(12.0)[::2], np.asfortranarray(np.eye(3))])
def test_a_non_contiguous_array_is_stored_in_order(array):
    weight = Weight(array)
    assert weight.values.flags.c_contiguous
    np.testing.assert_array_equal(weight.values, array)


def test_the_arrays_are_read_only_and_the_callers_array_is_not_shared():
    mine, scale = np.array([1, 2], np.int8), np.array([1, 2], np.float32)
    weight = Weight(mine, Affine(scale, 0, 8))
    mine[0], scale[0] = 9, 9
    np.testing.assert_array_equal(weight.dense(), [1, 4])
    for array in (weight.values, weight.encoding.scale):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 3
    assert mine.flags.writeable, "the caller's own array stays as it was"


def test_parts():
    weight = Weight(np.array([2, 4], np.int8), Affine(np.float32(0.5), None, 8))
    np.testing.assert_array_equal(weight.part(""), [1, 2])
    np.testing.assert_array_equal(weight.part("codes"), [2, 4])
    np.testing.assert_array_equal(weight.part("scale"), 0.5)


@pytest.mark.parametrize("part", ["scale", "zero", "Codes"])
def test_a_part_that_a_weight_has_not_is_refused(part):
    with pytest.raises(GraphError, match=f"Dense has no part '{part}'"):
        Weight(np.zeros(2, np.float32)).part(part)
