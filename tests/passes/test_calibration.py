"""Ranges of activations, worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_graphs import calibration_data, f32, linear_graph, two_bytes_up

from mlperf_opt.measure import peak_bytes
from mlperf_opt.passes.calibration import calibrate, coarse, grid_of

METHODS = ["minmax", "percentile", "mse"]
positive = st.floats(float(np.finfo(np.float32).tiny), 2.0**127, width=32)


def _grid(values, method, percentile=99.99):
    """The grid of the input of an identity layer."""
    graph = linear_graph((np.eye(1, dtype=np.float32), None))
    data = calibration_data(np.asarray(values, np.float32).reshape(-1, 1))
    scale, zero = calibrate(graph, {"x"}, data, method, percentile)["x"]
    assert scale.shape == zero.shape == ()
    assert (scale.dtype, zero.dtype) == (np.float32, np.uint8)
    return float(scale), int(zero)


def _error(values, scale, zero):
    codes = np.clip(np.rint(np.float64(values) / scale) + zero, 0, 255)
    return np.mean(((codes - zero) * scale - values) ** 2)


@settings(deadline=None)
@given(st.lists(positive, min_size=1, max_size=20))
def test_coarse_rounds_up_by_less_than_a_percent(numbers):
    scales = np.array(numbers, np.float32)
    rounded = coarse(scales)
    assert rounded.dtype == np.float32 and rounded.shape == scales.shape
    assert (rounded >= scales).all()
    assert (rounded.astype(np.float64) <= scales.astype(np.float64) * (1 + 2**-7)).all()
    assert (rounded.view(np.uint32) & 0xFFFF == 0).all()
    np.testing.assert_array_equal(coarse(rounded), rounded)


@settings(deadline=None)
@given(positive)
def test_coarse_is_the_next_number_of_eight_bits(number):
    assert float(coarse(np.float32(number))) == two_bytes_up(float(np.float32(number)))
    assert coarse(np.array(number, np.float32)).shape == ()


def test_minmax_by_hand():
    # 4 / 255 = 0.0156863; in 2^-6 .. 2^-5 the numbers of 8 bits stand 2^-13 apart: 128.5 steps, so 129
    scale, zero = _grid([-1, 0.5, 3], "minmax")
    assert scale == 129 / 8192
    assert zero == 64  # 1 / 0.0157471 = 63.504


def test_percentile_by_hand():
    # 1001 places: the 10th and 90th percentile are 100 and 900; the range is widened to hold 0; 900 / 255 = 225.88 / 64
    assert _grid(np.arange(1001), "percentile", 90.0) == (226 / 64, 0)
    # -800 .. 800: 1600 / 255 = 200.78 / 32, and 800 / 6.28125 = 127.4
    assert _grid(np.arange(-1000, 1001), "percentile", 90.0) == (201 / 32, 127)
    assert _grid(np.arange(1001), "percentile", 100.0) == _grid(np.arange(1001), "minmax")


def test_mse_beats_every_other_shortening():
    values = np.append(np.random.default_rng(5).uniform(-1, 1, 90_000), [6.0, -3.0]).astype(np.float32)
    found = _error(values, *_grid(values, "mse"))
    tried = []
    for ratio in np.arange(0.2, 1.0001, 0.01):
        scale = two_bytes_up(9 * ratio / 255)
        tried.append(_error(values, scale, np.rint(3 * ratio / scale)))
    assert found == pytest.approx(min(tried), rel=1e-6)
    assert found < 0.9 * _error(values, *_grid(values, "minmax"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "values",
    [[5, 6], [-6, -5], [0.25] * 9, [-0.25], [1e-10, -1e-10], [3e38, -3e38], [3e38, 0, 1], [-3e38, -1], [0, 1e-30]],
    ids=str,
)
def test_any_range_keeps_its_values_within_a_step(values, method):
    """Ranges without zero, of one constant, tiny and huge: the old system lost all of these."""
    scale, zero = _grid(values, method, 100.0)
    codes = np.clip(np.rint(np.float64(values) / scale) + zero, 0, 255)
    width = max(*values, 0) - min(*values, 0)
    assert 0 < scale <= width / 255 * 1.01
    assert np.abs((codes - zero) * scale - np.float64(values)).max() <= scale * (1 if method != "mse" else 256 * 0.8)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_zeros_has_an_ordinary_grid(method):
    assert _grid(np.zeros(7), method) == (1.0, 0)


def test_the_zero_point_belongs_to_the_rounded_scale():
    scale, zero = grid_of(f32(-1.0)[0], f32(254.0)[0])
    assert (float(scale), int(zero)) == (1.0, 1)
    scale, zero = grid_of(f32(-100.0)[0], f32(156.0)[0])  # 256 / 255 = 1.0039 becomes 1 + 1/128
    assert (float(scale), int(zero)) == (129 / 128, 99)


def test_every_named_value_has_its_own_grid():
    graph = linear_graph((f32([2]), None), (f32([-3]), None))
    grids = calibrate(graph, {"x", "fc1"}, calibration_data(f32([0], [255])), "minmax", 99.99)
    assert {name: (float(s), int(z)) for name, (s, z) in grids.items()} == {"x": (1.0, 0), "fc1": (2.0, 0)}


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_the_values_of_all_layers_are_never_held_together(method):
    """Of 24 layers, all of which are asked for, a few are in memory at once: here one is 400 kB."""
    rows, width, layers = 1000, 100, 24
    graph = linear_graph(*[(np.eye(width, dtype=np.float32), None)] * layers)
    data = calibration_data(np.ones((rows, width), np.float32))
    names = {"x", *(node.output for node in graph.nodes)}
    peak = peak_bytes(lambda: calibrate(graph, names, data, method, 99.99))
    assert peak < 8 * rows * width * 4, "a percentile's float64 copies, beside an input and an output"
