"""quant in few bits: codes and steps by hand, zeros that stay, biases on the grid, and that the file is smaller."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_graphs import calibration_data, f32, linear_graph, quality, run_pass

from mlperf_opt.artifacts import load_graph, save_graph
from mlperf_opt.errors import ConfigError
from mlperf_opt.graph import graph_hash
from mlperf_opt.passes.finetune import Finetune
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import NUMPY, RUNTIMES

NO_DATA = calibration_data(np.zeros((1, 1), np.float32))
IN_FILE = {"scheme": "weight_only", "granularity": "tensor"}


def _coded(*layers, **settings_):
    return run_pass(Quant(**{**IN_FILE, **settings_}), linear_graph(*layers), NO_DATA).graph


@pytest.mark.parametrize("bits, codes", [(2, [1, -1, 0, 0]), (3, [3, -2, 0, 1]), (4, [7, -4, 1, 2]), (6, [31, -16, 2, 8])])
def test_the_largest_magnitude_has_the_largest_code(bits, codes):
    weight = _coded((f32([3.1, -1.6, 0.25, 0.8]), None), bits=bits).weights["fc1.weight"]
    assert weight.values.tolist() == [codes] and weight.values.dtype == np.int8
    assert weight.encoding.bits == bits
    assert 3.1 / (2 ** (bits - 1) - 1) <= float(weight.encoding.scale) <= 3.1 / (2 ** (bits - 1) - 1) * 1.01


def test_the_mean_step_by_hand():
    """Mean magnitude of what is not zero is 2: a step of 0.5 times it is 1; 0.1 isn't lost, 9 saturates."""
    weight = _coded((f32([0.1, -0.4, 0, 1.5, 9, -1]), None), step="mean", step_ratio=5 / 12, bits=4).weights["fc1.weight"]
    assert float(weight.encoding.scale) == 1.0
    assert weight.values.tolist() == [[1, -1, 0, 2, 7, -1]]
    channels = _coded((f32([0, 2], [8, 0]), None), step="mean", step_ratio=0.5, granularity="channel").weights["fc1.weight"]
    assert channels.encoding.scale.tolist() == [1, 4] and channels.values.tolist() == [[0, 2], [2, 0]]


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 8), st.floats(0.01, 10), st.integers(0, 2**32 - 1))
def test_zeros_stay_and_nothing_else_becomes_one(bits, ratio, seed):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((5, 7)) * (rng.random((5, 7)) < 0.5)).astype(np.float32)
    for granularity in ("tensor", "channel"):
        weight = _coded((values, None), step="mean", step_ratio=ratio, bits=bits, granularity=granularity)
        codes = weight.weights["fc1.weight"].values
        np.testing.assert_array_equal(codes == 0, values == 0)
        np.testing.assert_array_equal(np.sign(codes), np.sign(values))
        assert np.abs(codes).max() <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("bias, dtype", [([3, -2.4], "int8"), ([1000, 2], "int16"), ([1e7, 0], "int32")])
def test_biases_are_multiples_of_the_weights_scale(bias, dtype):
    graph = _coded((f32([1, 7], [3, 2]), f32(*bias)), bits=4, biases="grid")
    weight = graph.weights["fc1.bias"]
    assert weight.values.tolist() == [round(b) for b in bias] and weight.values.dtype == dtype
    assert weight.encoding.scale == graph.weights["fc1.weight"].encoding.scale == 1
    np.testing.assert_array_equal(NUMPY.prepare(graph)(f32([1, 1])), f32([8 + round(bias[0]), 5 + round(bias[1])]))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_step_each_for_the_biases_of_channels(granularity, cnn):
    graph, data = cnn
    coded = run_pass(Quant(scheme="weight_only", granularity=granularity, biases="grid"), graph, data).graph
    for name in ("conv1", "conv2", "fc1"):
        weight, bias = coded.weights[f"{name}.weight"], coded.weights[f"{name}.bias"]
        np.testing.assert_array_equal(weight.encoding.scale, bias.encoding.scale)
        error = np.abs(bias.dense() - graph.weights[f"{name}.bias"].values)
        assert (error <= weight.encoding.scale * 0.5001).all()


@pytest.mark.parametrize("runtime", ["numpy", "compiled"])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_any_runtime_reads_them_and_the_file_is_smaller(runtime, bits, mlp, tmp_path):
    graph, data = mlp
    coded, eight = (run_pass(Quant(**IN_FILE, bits=b, biases="grid"), graph, data).graph for b in (bits, 8))
    saved = save_graph(coded, tmp_path / "few.safetensors")
    assert saved.weights_bytes < save_graph(eight, tmp_path / "eight.safetensors").weights_bytes * (bits + 1.5) / 8
    assert graph_hash(load_graph(saved.path)) == graph_hash(coded)
    x = data.calibration.inputs[:16]
    dense = graph.with_weights({name: type(w)(w.dense()) for name, w in coded.weights.items()})
    np.testing.assert_allclose(RUNTIMES[runtime].prepare(coded)(x), NUMPY.prepare(dense)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits, step", [(3, "max"), (4, "mean")])
def test_training_through_the_grid_makes_few_bits_good(bits, step, mlp):
    graph, data = mlp
    pruned = run_pass(Prune(sparsity=0.5), graph, data).graph
    coded = run_pass(Quant(**IN_FILE, bits=bits, step=step, step_ratio=1.0, biases="grid"), pruned, data).graph
    tuned = run_pass(Finetune(epochs=8, lr=0.003), coded, data).graph
    assert quality(tuned, data) >= max(0.93, quality(coded, data))
    for name in coded.matrices():
        before, after = coded.weights[name], tuned.weights[name]
        assert (after.values[before.values == 0] == 0).all()
        assert after.encoding == before.encoding or np.array_equal(after.encoding.scale, before.encoding.scale)
    assert (tuned.weights["fc1.weight"].values != coded.weights["fc1.weight"].values).any()
    assert (tuned.weights["fc1.bias"].values != coded.weights["fc1.bias"].values).any()


@pytest.mark.parametrize(
    "given_, message",
    [
        ({"bits": 1}, "bits=1: expected 2 to 8"),
        ({"bits": 9}, "bits=9: expected 2 to 8"),
        ({"bits": 4}, "bits=4: expected 8, or dtype=int8 with scheme=weight_only"),
        ({"step": "mean"}, "step=mean: expected max, or dtype=int8 with scheme=weight_only"),
        ({"biases": "grid", "scheme": "dynamic"}, "biases=grid: expected float32, or dtype=int8 with scheme=weight_only"),
        ({"bits": 4, "dtype": "fp16", "scheme": "weight_only"}, "bits=4: expected 8, or dtype=int8 with"),
        ({"step_ratio": 0.0}, "step_ratio=0.0: expected a number > 0"),
    ],
    ids=str,
)
def test_few_bits_live_in_the_file_alone(given_, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        Quant(**given_)
