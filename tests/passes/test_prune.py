"""prune: exactly which entries become zero, counted and chosen by hand."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pass_graphs import calibration_data, f32, linear_graph, run_pass

from mlperf_opt.errors import ConfigError, PassError
from mlperf_opt.graph import Affine, Weight
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.quant import Quant

NO_DATA = calibration_data(np.zeros((1, 1), np.float32))
LARGE, SMALL = f32([9, -8], [7, 6]), f32([0.5, -0.4], [0.3, 0.2])


def _pruned(graph, **settings):
    return run_pass(Prune(**settings), graph, NO_DATA).graph


def _values(graph, name):
    return graph.weights[f"{name}.weight"].values


@pytest.mark.parametrize("sparsity, zeros", [(0, 0), (0.1, 1), (0.25, 2), (0.5, 5), (0.74, 7), (0.76, 8), (0.94, 9)])
@pytest.mark.parametrize("weight", ["spread", "equal", "signs"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_zeros_are_counted_exactly(sparsity, zeros, weight, scope):
    """Equal magnitudes too: a threshold would take all of them or none."""
    values = {"spread": np.arange(1, 11), "equal": np.full(10, 0.25), "signs": np.tile([1, -1], 5)}[weight]
    graph = linear_graph((values.reshape(2, 5).astype(np.float32), None))
    assert (_values(_pruned(graph, sparsity=sparsity, scope=scope), "fc1") == 0).sum() == zeros


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(0, 0.999), st.integers(0, 2**32 - 1))
def test_the_smallest_magnitudes_go(size, sparsity, seed):
    assume(math.floor(sparsity * size + 0.5) < size)
    values = np.random.default_rng(seed).integers(-5, 6, (1, size)).astype(np.float32)
    pruned = _values(_pruned(linear_graph((values, None)), sparsity=sparsity), "fc1")
    kept = pruned != 0
    # round() to the nearest, or what was zero before
    assert (~kept).sum() == max(math.floor(sparsity * size + 0.5), (values == 0).sum()) or (sparsity * size) % 1 == 0.5
    np.testing.assert_array_equal(pruned[kept], values[kept])
    if kept.any():
        assert np.abs(values[~kept]).max(initial=0) <= np.abs(values[kept]).min()


@pytest.mark.parametrize(
    "scope, left", [("global", "of the 8 weights of fc1.weight, fc2.weight"), ("layer", "of the 4 weights")]
)
def test_a_sparsity_that_leaves_no_weight_is_refused(scope, left):
    graph = linear_graph((LARGE, None), (SMALL, None))
    with pytest.raises(PassError, match=f"^prune: sparsity=0.95 leaves none {left}"):
        Prune(sparsity=0.95, scope=scope).check(graph)
    Prune(sparsity=0.85, scope=scope).check(graph)


def test_half_of_equal_weights_is_half():
    graph = linear_graph((np.ones((4, 8), np.float32), None), (np.ones((2, 4), np.float32), None))
    pruned = _pruned(graph, sparsity=0.5)
    assert (_values(pruned, "fc1") == 0).sum() + (_values(pruned, "fc2") == 0).sum() == 20


def test_of_equal_magnitudes_the_first_go():
    values = np.tile([2, -1, 1, 3], 250).reshape(10, 100).astype(np.float32)
    pruned = _values(_pruned(linear_graph((values, None)), sparsity=0.25), "fc1").reshape(-1)
    ones = np.flatnonzero(np.abs(values.reshape(-1)) == 1)
    assert np.flatnonzero(pruned == 0).tolist() == ones[:250].tolist()


def test_global_takes_the_smallest_of_the_network():
    pruned = _pruned(linear_graph((LARGE, None), (SMALL, None)), sparsity=0.5, scope="global")
    np.testing.assert_array_equal(_values(pruned, "fc1"), LARGE)
    np.testing.assert_array_equal(_values(pruned, "fc2"), np.zeros((2, 2)))


def test_layer_takes_the_same_share_of_each():
    pruned = _pruned(linear_graph((LARGE, None), (SMALL, None)), sparsity=0.5, scope="layer")
    np.testing.assert_array_equal(_values(pruned, "fc1"), f32([9, -8], [0, 0]))
    np.testing.assert_array_equal(_values(pruned, "fc2"), f32([0.5, -0.4], [0, 0]))


@pytest.mark.parametrize("skip", ["fc2", "fc2.weight"])
def test_skip_by_node_or_weight(skip):
    pruned = _pruned(linear_graph((LARGE, None), (SMALL, None)), sparsity=0.5, skip=(skip,))
    np.testing.assert_array_equal(_values(pruned, "fc1"), f32([9, -8], [0, 0]))
    np.testing.assert_array_equal(_values(pruned, "fc2"), SMALL)


@pytest.mark.parametrize(
    "skip, message",
    [
        (("fc3",), r"^prune: skip=fc3: no such weight or node; did you mean 'fc[12]'"),
        (("fc1.wieght",), "did you mean 'fc1.weight'"),
        (("fc1.bias",), "skip=fc1.bias: no such weight or node"),
        (("fc1", "fc2.weight"), "^prune: nothing is left to prune"),
    ],
)
def test_a_skip_that_makes_no_sense_is_refused(skip, message):
    graph = linear_graph((LARGE, f32(1, 2)), (SMALL, None))
    with pytest.raises(PassError, match=message):
        Prune(skip=skip).check(graph)


def test_what_is_zero_already_counts():
    values = f32([0, 0, 0, 1], [2, 3, 4, 5])
    for sparsity, expected in ((0.25, values), (0.5, f32([0, 0, 0, 0], [2, 3, 4, 5]))):
        np.testing.assert_array_equal(_values(_pruned(linear_graph((values, None)), sparsity=sparsity), "fc1"), expected)


def test_codes_are_pruned_by_what_they_stand_for():
    """Channel 0 holds large codes of tiny steps, channel 1 small codes of large steps."""
    codes = np.array([[100, -90, 80], [3, 2, -1]], np.int8)
    weight = Weight(codes, Affine(f32(0.001, 1.0), 0, 8))
    graph = linear_graph((np.ones((2, 3), np.float32), None)).with_weights({"fc1.weight": weight})
    pruned = _pruned(graph, sparsity=0.5).weights["fc1.weight"]
    assert pruned.values.dtype == np.int8
    assert pruned.values.tolist() == [[0, 0, 0], [3, 2, -1]]
    np.testing.assert_array_equal(pruned.encoding.scale, f32(0.001, 1.0))


@pytest.mark.parametrize("settings", [{}, {"scheme": "dynamic"}, {"scheme": "weight_only"}, {"dtype": "fp16"}])
def test_quantized_networks_reach_the_same_count(cnn, settings):
    graph = run_pass(Quant(**settings), *cnn).graph
    result = run_pass(Prune(sparsity=0.6), graph, NO_DATA)
    sizes = sum(graph.weights[name].values.size for name in graph.matrices())
    assert sum(result.stats["zeros"].values()) == round(0.6 * sizes) == 386  # of 36 + 288 + 320
    for name in graph.matrices():
        assert result.graph.weights[name].values.dtype == graph.weights[name].values.dtype
        assert result.stats["zeros"][name] == (result.graph.weights[name].values == 0).sum()


def test_biases_norms_and_positions_stay(transformer):
    graph, _ = transformer
    pruned = _pruned(graph, sparsity=0.9)
    changed = {n for n in graph.weights if not np.array_equal(graph.weights[n].values, pruned.weights[n].values)}
    linears = ("query", "key", "value", "project", "up", "down")
    assert changed == {"embed.table", "logits.weight", *(f"layer{i}.{part}.weight" for i in (1, 2) for part in linears)}


def test_no_negative_zero_is_left_behind(mlp):
    pruned = _pruned(mlp[0], sparsity=0.7)
    zeros = _values(pruned, "fc1")[_values(pruned, "fc1") == 0]
    assert not np.signbit(zeros).any()


@pytest.mark.parametrize("sparsity", [float("nan"), 1.0, -0.1, 1.5, float("inf")])
def test_impossible_shares_are_refused(sparsity):
    with pytest.raises(ConfigError, match=rf"^sparsity={sparsity}: expected 0 to less than 1"):
        Prune(sparsity=sparsity)
