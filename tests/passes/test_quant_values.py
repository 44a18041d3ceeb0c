"""quant: the numbers, against float64 oracles written here and worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pass_graphs import calibration_data, f32, linear_graph, quality, run_pass, two_bytes_up

from mlperf_opt.graph import GraphBuilder, Weight
from mlperf_opt.passes.quant import Quant, quantize_weight
from mlperf_opt.runtimes import NUMPY, intermediate_values

SCHEMES = ["static", "dynamic", "weight_only"]


def _run(graph, inputs):
    return NUMPY.prepare(graph)(inputs)


# the float64 oracle: each value is rounded to its grid and stays real


class Oracle:
    """Fake quantization of a chain of layers, from ranges of the float network."""

    def __init__(self, graph, granularity):
        self.weights = {name: w.values.astype(np.float64) for name, w in graph.weights.items()}
        self.granularity = granularity

    def grid(self, calibration):
        low, high = min(calibration.min(), 0), max(calibration.max(), 0)
        scale = two_bytes_up(float(np.float32((high - low) / 255)))
        return scale, np.rint(-low / scale)

    def on_grid(self, x, grid):
        scale, zero = grid
        return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale

    def matrix(self, name, x_scale):
        """The rounded weight (M, K) and bias of a layer."""
        real, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        flat = real.reshape(len(real), -1)
        steps = np.maximum(np.abs(flat).max(axis=1) / 127, np.abs(bias) / (x_scale * 2**24))
        if self.granularity == "tensor":
            steps = np.full(len(steps), steps.max())
        steps = np.array([two_bytes_up(float(np.float32(s))) if s else 1.0 for s in steps])
        return np.rint(flat / steps[:, None]) * steps[:, None], np.rint(bias / (x_scale * steps)) * x_scale * steps

    def product(self, name, rows, x_scale):
        weight, bias = self.matrix(name, x_scale)
        return rows @ weight.T + bias


def _windows(x):
    """(N, C, H, W) -> (N, H, W, C*9): the 3x3 neighbourhoods, zeros outside."""
    n, c, h, w = x.shape
    padded = np.zeros((n, c, h + 2, w + 2))
    padded[:, :, 1:-1, 1:-1] = x
    taps = [padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return np.stack(taps, axis=2).reshape(n, c * 9, h, w).transpose(0, 2, 3, 1)


def _pooled_relu(rows):
    """(N, H, W, C) -> (N, C, H/2, W/2)."""
    n, h, w, c = rows.shape
    return np.maximum(rows, 0).reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4)).transpose(0, 3, 1, 2)


def _mlp_oracle(oracle, values, x):
    flat, hidden = (oracle.grid(values[name]) for name in ("flatten", "relu1"))
    y = oracle.product("fc1", oracle.on_grid(x.reshape(len(x), -1), flat), flat[0])
    return oracle.product("fc2", oracle.on_grid(np.maximum(y, 0), hidden), hidden[0])


def _cnn_oracle(oracle, values, x):
    grids = [oracle.grid(values[name]) for name in ("x", "pool1", "flatten")]
    y = _pooled_relu(oracle.product("conv1", _windows(oracle.on_grid(x, grids[0])), grids[0][0]))
    y = _pooled_relu(oracle.product("conv2", _windows(oracle.on_grid(y, grids[1])), grids[1][0]))
    return oracle.product("fc1", oracle.on_grid(y.reshape(len(y), -1), grids[2]), grids[2][0])


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("model, run", [("mlp", _mlp_oracle), ("cnn", _cnn_oracle)])
def test_integers_compute_what_rounded_reals_do(request, model, run, granularity):
    graph, data = request.getfixturevalue(model)
    x = data.calibration.inputs
    values = intermediate_values(graph, {"x", "flatten", "relu1", "pool1"}, x)
    expected = run(Oracle(graph, granularity), values, x.astype(np.float64))
    found = _run(run_pass(Quant(granularity=granularity), graph, data).graph, x)
    rows_apart = np.abs(found - expected).max(axis=1) > 1e-4 * np.abs(expected).max()
    assert rows_apart.mean() < 0.05, "only where a code lies within float32's rounding of a half"
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    real = _run(graph, x)
    assert np.abs(expected - real).max() > 1e-3 * np.abs(real).max(), "the oracle rounds"


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_dynamic_rounds_each_row_to_its_own_range(granularity):
    rng = np.random.default_rng(4)
    weight, bias = rng.normal(size=(3, 6)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    x = (rng.normal(size=(50, 6)) * np.logspace(-3, 3, 50)[:, None]).astype(np.float32)
    graph = run_pass(Quant(scheme="dynamic", granularity=granularity), linear_graph((weight, bias)), None).graph
    peaks = np.abs(weight).max(axis=1 if granularity == "channel" else None, keepdims=True)
    steps = np.vectorize(two_bytes_up)(peaks.astype(np.float64) / 127)
    rounded = np.rint(weight / steps) * steps
    for row, found in zip(x.astype(np.float64), _run(graph, x), strict=True):
        low, high = min(row.min(), 0), max(row.max(), 0)
        scale = float(np.float32((high - low) / 255))
        zero = np.rint(-low / scale)
        seen = (np.clip(np.rint(row / scale) + zero, 0, 255) - zero) * scale
        np.testing.assert_allclose(found, rounded @ seen + bias, rtol=1e-5, atol=1e-5 * max(1, high - low))


# scales and codes by hand

BY_HAND = f32([127, -63.5, 0.4], [-1.27, 0.005, 0.0])


def test_a_scale_for_each_channel_by_hand():
    found = quantize_weight(Weight(BY_HAND), 0)
    # 0.01 lies in 2^-7 .. 2^-6, where the numbers of 8 bits stand 2^-14 apart: 163.84 steps, so 164
    assert found.encoding.scale.tolist() == [1.0, 164 / 2**14]
    assert found.values.tolist() == [[127, -64, 0], [-127, 0, 0]]  # 63.5 to even; 1.27 and 0.005 in steps of 0.01001


def test_one_scale_for_all_by_hand():
    found = quantize_weight(Weight(BY_HAND), None)
    assert found.encoding.scale.shape == () and float(found.encoding.scale) == 1.0
    assert found.values.tolist() == [[127, -64, 0], [-1, 0, 0]]


def test_a_channel_of_zeros_gets_the_scale_one():
    found = quantize_weight(Weight(f32([0, 0], [254, 1])), 0)
    assert found.encoding.scale.tolist() == [1.0, 2.0]
    assert found.values.tolist() == [[0, 0], [127, 0]]


@settings(deadline=None)
@given(arrays(np.float32, (3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)), st.sampled_from([0, None]))
def test_scales_take_two_bytes_and_hold_the_largest(values, axis):
    weight = quantize_weight(Weight(values), axis)
    scale = np.float64(weight.encoding.scale)
    peak = np.abs(values.astype(np.float64)).max(axis=1 if axis == 0 else None)
    assert (weight.encoding.scale.view(np.uint32) & 0xFFFF == 0).all()
    assert (scale >= peak / 127 * (1 - 2**-23)).all(), "float32's own rounding apart"
    large = peak / 127 > np.finfo(np.float32).tiny
    assert (scale[large] <= (peak[large] / 127) * (1 + 2**-7) * (1 + 2**-20)).all()
    real = weight.values * (scale[:, None] if axis == 0 else scale)
    step = scale[:, None] if axis == 0 else scale
    assert (np.abs(real - values) <= step * 0.5001).all()


def test_bias_codes_stand_for_x_scale_times_w_scale():
    graph = linear_graph((f32([127, 1], [-254, 2]), f32(10, -7.25)))
    graph = run_pass(Quant(), graph, calibration_data(f32([0, 0], [510, 255]))).graph
    assert float(graph.weights["x.scale"].values) == 2.0 and int(graph.weights["x.zero"].values) == 0
    bias = graph.weights["fc1.bias"]
    assert bias.values.dtype == np.int32
    assert bias.encoding.scale.tolist() == [2.0, 4.0]
    assert bias.values.tolist() == [5, -2]  # 10 / (2 * 1), -7.25 / (2 * 2)
    # row by row: (4/2, 6/2) -> 2 * (2 * 127 + 3 * 1 + 5), 4 * (2 * -127 + 3 * 1 - 2)
    assert _run(graph, f32([4, 6])).tolist() == [[524.0, -1012.0]]


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("tiny", [1e-8, 1e-30, 0.0])
def test_a_large_bias_beside_tiny_weights_is_kept(tiny, granularity):
    weight, bias = f32([tiny, -tiny], [0.5, 0.25]), f32(3.7, 0.1)
    x = np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype(np.float32)
    found = _run(run_pass(Quant(granularity=granularity), linear_graph((weight, bias)), calibration_data(x)).graph, x)
    np.testing.assert_allclose(found[:, 0], 3.7, rtol=1e-3 if granularity == "tensor" else 1e-5)
    np.testing.assert_allclose(found[:, 1], x @ weight[1] + bias[1], atol=0.012)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bias", [0.0, 1e-3])
def test_weights_that_training_has_let_fade_away(scheme, bias):
    """x_scale * w_scale would be below the smallest float32."""
    x = f32([1e-10, -1e-10], [5e-11, 0])
    graph = linear_graph((f32([1e-38, -1e-40], [1, 2]), f32(bias, 0)))
    found = _run(run_pass(Quant(scheme=scheme), graph, calibration_data(x)).graph, x)
    np.testing.assert_allclose(found[:, 0], bias, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(found[:, 1], [-1e-10, 5e-11], atol=3e-12)


# ranges that the old system lost

RANGES = {
    "above zero": (f32([5, 5.5], [6, 5.1]), 0.3),
    "below zero": (f32([-5, -5.5], [-6, -5.1]), 0.3),
    "constant": (f32([0.25, 0.25], [0.25, 0.25]), 0.3),
    "zeros": (f32([0, 0], [0, 0]), 0.3),
    "tiny": (f32([1e-10, -1e-10], [-5e-11, 1e-10]), 0.3),
    "huge": (f32([3e38, -3e38], [1e38, 1e37]), 1e-3),
    "huge weights": (f32([0.05, -0.1], [0.1, 0.01]), 3e38),
    "tiny weights": (f32([1, -2], [3, 0.5]), 1e-10),
    "tiny both": (f32([1e-10, -1e-10], [0, 1e-10]), 1e-10),
    "huge times tiny": (f32([3e38, -3e38], [1e38, 1e37]), 1e-30),
}


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_any_range_comes_out_finite_and_within_a_step(name, scheme, method, granularity):
    x, size = RANGES[name]
    weight = f32([1, -0.5], [0.25, 1], [0, 0], [0.5, 0.5]) * np.float32(size)
    graph = linear_graph((weight, None))
    step = Quant(scheme=scheme, calibration=method, percentile=100.0, granularity=granularity)
    found = _run(run_pass(step, graph, calibration_data(x)).graph, x).astype(np.float64)
    assert np.isfinite(found).all()
    big_x, big_w = np.abs(np.float64(x)).max(), np.abs(np.float64(weight)).max()
    x_step = (max(x.max(), 0) - min(np.float64(x.min()), 0)) / 255 * 1.01 * (50 if method == "mse" else 1)
    w_step = big_w / 127 * 1.01
    limit = 2 * (x_step * big_w + 0.5 * w_step * big_x + x_step * w_step) * 1.01
    assert np.abs(found - np.float64(x) @ np.float64(weight).T).max() <= limit
    assert (found[:, 2] == 0).all(), "zero weights give zero"


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (5, 3), elements=st.floats(-(2.0**20), 2.0**20, width=32)),
    arrays(np.float32, (2, 3), elements=st.floats(-(2.0**20), 2.0**20, width=32)),
    arrays(np.float32, 2, elements=st.floats(-(2.0**10), 2.0**10, width=32)),
    st.sampled_from(["static", "dynamic"]),
)
def test_any_layer_stays_within_its_steps(x, weight, bias, scheme):
    graph = linear_graph((weight, bias))
    found = _run(run_pass(Quant(scheme=scheme), graph, calibration_data(x)).graph, x).astype(np.float64)
    big_x, big_w = np.abs(np.float64(x)).max(), np.abs(np.float64(weight)).max()
    x_step = (max(x.max(), 0) - min(np.float64(x.min()), 0)) / 255 * 1.01 or 1.0
    # a large bias beside small weights may coarsen them, by design to its own 24 bits
    # nor is a scale ever below the smallest normal float32
    least = max(np.abs(np.float64(bias)).max() / (x_step / 1.02 * 2**24), np.finfo(np.float32).tiny)
    w_step = max(big_w / 127, least) * 1.01
    limit = 3 * (x_step * big_w + 0.5 * w_step * big_x + x_step * w_step) * 1.01 + np.abs(bias).max() * 1e-6 + 1e-37
    assert np.abs(found - (np.float64(x) @ np.float64(weight).T + bias)).max() <= limit


# embeddings and the transformer


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_an_embedding_looks_up_rounded_rows(scheme, granularity):
    table = f32([127, -63.4], [0.0127, 0.0], [1.0, -12.7])
    build = GraphBuilder("tiny")
    graph = build.finish(build.node("embedding", "embed", build.input("t", ("N", "T"), "int64"), table=table))
    data = calibration_data(np.zeros((1, 1), np.int64))
    found = run_pass(Quant(scheme=scheme, granularity=granularity), graph, data).graph
    assert found.nodes[0].op == ("embedding" if scheme == "weight_only" else "qembedding")
    peaks = np.abs(table).max(axis=1 if granularity == "channel" else None, keepdims=True)
    steps = np.vectorize(two_bytes_up)(peaks.astype(np.float64) / 127)
    tokens = np.array([[0, 1, 2], [2, 2, 0]])
    np.testing.assert_allclose(_run(found, tokens), (np.rint(table / steps) * steps)[tokens], rtol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_the_transformer_still_reverses(transformer, scheme, granularity):
    graph, data = transformer
    assert len(data.calibration) == 200
    assert quality(run_pass(Quant(scheme=scheme, granularity=granularity), graph, data).graph, data) >= 0.99
