"""Units: what may be removed, that removing dead ones changes nothing, and where their constant can't go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_graphs import calibration_data, f32, linear_graph, run_pass

from mlperf_opt.graph import Affine, GraphBuilder, Weight, verify
from mlperf_opt.networks import DigitMLP, MinimalTransformer, SimpleCNN
from mlperf_opt.passes.quant import Quant
from mlperf_opt.passes.tidy import Tidy
from mlperf_opt.passes.units import layers, scores, select
from mlperf_opt.runtimes import NUMPY

NO_DATA = calibration_data(np.zeros((1, 1), np.float32))
CNN = SimpleCNN(image=(1, 14, 14), channels=(4, 5), kernel=3, padding=0, hidden=(6,), classes=3)


def _output(graph, x):
    return NUMPY.prepare(graph)(x)


def _shapes(graph):
    return [graph.weights[name].values.shape for name in graph.matrices()]


def _tidy(graph, **settings_):
    return run_pass(Tidy(**settings_), graph, NO_DATA)


def _with_bias(graph, rng):
    """Biases that aren't zero, so that a dead unit is a constant that matters."""
    names = [name for name in graph.weights if name.endswith(".bias")]
    shapes = {name: graph.weights[name].values.shape for name in names}
    return graph.with_weights({n: Weight(rng.uniform(0.2, 1, shape).astype(np.float32)) for n, shape in shapes.items()})


def _zero_rows(graph, name, rows):
    values = graph.weights[name].values.copy()
    values[rows] = 0
    return graph.with_weights({name: Weight(values)})


def test_hidden_layers_alone_have_units(rng):
    def names(network):
        return [layer.node.output for layer in layers(network.build("net", rng))]

    assert names(DigitMLP(image=(1, 2, 2), sizes=(4, 5, 6, 3))) == ["fc1", "fc2"]
    assert names(CNN) == ["conv1", "conv2", "fc1"]
    transformer = MinimalTransformer(vocabulary=5, context=4, layers=2, dim=4, heads=2, hidden=6)
    assert names(transformer) == ["layer1.up", "layer2.up"]  # the rest meets in additions and attention


def test_a_weight_of_two_nodes_is_no_layers_own(rng):
    build = GraphBuilder("tied")
    x = build.input("x", ("N", 3), "float32")
    first = build.node("linear", "a", x, weight=rng.standard_normal((3, 3)).astype(np.float32))
    second = build.node("linear", "b", first, weight=np.ones((3, 3), np.float32))
    graph = build.finish(second)
    tied = [node if node.output != "b" else type(node)("linear", ("a", "a.weight", ""), "b") for node in graph.nodes]
    graph = verify(type(graph)("tied", tuple(tied), {"a.weight": graph.weights["a.weight"]}, graph.inputs, ("b",)))
    assert layers(graph) == []


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_another_order_of_units_is_the_same_network(layer, rng):
    graph = _with_bias(CNN.build("net", rng), rng)
    chosen = layers(graph)[layer]
    moved = verify(select(graph, chosen, rng.permutation(chosen.units(graph))))
    x = rng.standard_normal((3, 1, 14, 14)).astype(np.float32)
    np.testing.assert_allclose(_output(moved, x), _output(graph, x), rtol=1e-4, atol=1e-5)
    assert not np.array_equal(moved.weights[chosen.weight].values, graph.weights[chosen.weight].values)


def test_removing_a_unit_takes_its_row_and_its_columns(rng):
    graph = CNN.build("net", rng)
    after = select(graph, layers(graph)[1], np.array([3, 0]))
    assert _shapes(after) == [(4, 1, 3, 3), (2, 4, 3, 3), (6, 2 * 4), (3, 6)]
    np.testing.assert_array_equal(after.weights["conv2.weight"].values, graph.weights["conv2.weight"].values[[3, 0]])
    columns = [12, 13, 14, 15, 0, 1, 2, 3]  # each channel is a 2x2 image behind the flatten
    np.testing.assert_array_equal(after.weights["fc1.weight"].values, graph.weights["fc1.weight"].values[:, columns])


def test_scores_are_the_product_of_both_norms():
    graph = linear_graph((f32([3, 4], [0, 2]), None), (f32([1, 6], [2, 8]), None))
    np.testing.assert_allclose(scores(graph, layers(graph)[0]), [5 * 5**0.5, 2 * 10])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_dead_units_go_and_outputs_stay(seed):
    """Random masks of CNN, some rows and columns all zero: whatever dies, the function stays."""
    rng = np.random.default_rng(seed)
    graph = _with_bias(CNN.build("net", rng), rng)
    masked = {}
    for name in graph.matrices():
        values = graph.weights[name].values * (rng.random(graph.weights[name].values.shape) < 0.4)
        values[rng.random(len(values)) < 0.4] = 0
        masked[name] = Weight(values.astype(np.float32))
    graph = graph.with_weights(masked)
    result = _tidy(graph)
    x = rng.standard_normal((4, 1, 14, 14)).astype(np.float32)
    np.testing.assert_allclose(_output(result.graph, x), _output(graph, x), rtol=1e-3, atol=1e-4)
    for layer in layers(result.graph):
        rows = result.graph.weights[layer.weight].values.reshape(layer.units(result.graph), -1)
        counts = (rows != 0).sum(axis=1)
        assert layer.units(result.graph) == 1 or counts.min() > 0
        assert (np.diff(counts) <= 0).all()
    assert _shapes(_tidy(result.graph).graph) == _shapes(result.graph)


def test_a_constant_moves_through_its_relu_into_the_next_bias():
    hidden, last = f32([1, 2], [0, 0], [0, 0]), f32([1, 10, 100])
    graph = linear_graph((hidden, f32(0, 3, -4)), (last, f32(7)))
    build = GraphBuilder("relu")
    x = build.input("x", ("N", 2), "float32")
    y = build.node("linear", "fc1", x, weight=hidden, bias=f32(0, 3, -4))
    relu = build.finish(build.node("linear", "fc2", build.node("relu", "relu1", y), weight=last, bias=f32(7)))
    for network, expected in ((graph, 7 + 30 - 400), (relu, 7 + 30)):
        result = _tidy(network)
        assert result.stats == {"removed": {"fc1": 2}}
        assert result.graph.weights["fc2.bias"].values.tolist() == [expected]
        assert _shapes(result.graph) == [(1, 2), (1, 1)]


def test_a_reader_without_a_bias_gets_one():
    graph = linear_graph((f32([1, 2], [0, 0]), f32(0, 3)), (f32([1, 10]), None))
    after = _tidy(graph).graph
    assert after.weights["fc2.bias"].values.tolist() == [30]
    assert after.node("fc2").inputs == ("fc1", "fc2.weight", "fc2.bias")


def test_units_that_nobody_reads_go_whatever_they_hold():
    graph = linear_graph((f32([1, 2], [3, 4]), f32(5, 6)), (f32([0, 1]), f32(7)))
    after = _tidy(graph).graph
    assert after.weights["fc1.weight"].values.tolist() == [[3, 4]] and after.weights["fc2.bias"].values.tolist() == [7]


def test_one_unit_stays_of_a_layer_that_is_dead():
    graph = linear_graph((np.zeros((3, 2), np.float32), f32(1, 2, 3)), (f32([1, 1, 1]), f32(0)))
    after = _tidy(graph).graph
    assert _shapes(after) == [(1, 2), (1, 1)]
    np.testing.assert_allclose(_output(after, f32([5, 5])), [[6]])


@pytest.mark.parametrize("bias, removed", [(0.5, 0), (-0.5, 1), (0.0, 1)])
def test_before_a_padding_convolution_only_zero_constants_can_go(bias, removed, rng):
    """Beyond the border the convolution reads zeros, not the constant; relu makes zero of a negative one."""
    graph = SimpleCNN(image=(1, 8, 8), channels=(3, 4), padding=1, classes=3).build("net", rng)
    graph = _zero_rows(graph, "conv1.weight", [1])
    graph = graph.with_weights({"conv1.bias": Weight(f32(0.1, bias, 0.2))})
    result = _tidy(graph)
    assert result.stats["removed"]["conv1"] == removed
    x = rng.standard_normal((2, 1, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(_output(result.graph, x), _output(graph, x), rtol=1e-4, atol=1e-5)


def test_a_bias_on_a_grid_takes_no_constant(rng):
    graph = _with_bias(DigitMLP(image=(1, 2, 2), sizes=(4, 5, 3)).build("net", rng), rng)
    graph = _zero_rows(graph, "fc1.weight", [0, 3])
    step = Quant(scheme="weight_only", granularity="tensor", biases="grid", bits=4)
    coded = run_pass(step, graph, NO_DATA).graph
    assert isinstance(coded.weights["fc2.bias"].encoding, Affine)
    assert _tidy(coded).stats["removed"] == {"fc1": 0}
    assert _tidy(graph).stats["removed"] == {"fc1": 2}


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_codes_keep_their_scales(granularity, rng):
    graph = CNN.build("net", rng)
    graph = _zero_rows(graph, "conv2.weight", [1])
    coded = run_pass(Quant(scheme="weight_only", granularity=granularity), graph, NO_DATA).graph
    result = _tidy(coded)
    assert result.stats["removed"] == {"conv1": 0, "conv2": 1, "fc1": 0}
    x = rng.standard_normal((2, 1, 14, 14)).astype(np.float32)
    np.testing.assert_allclose(_output(result.graph, x), _output(coded, x), rtol=1e-4, atol=1e-5)


def test_without_sorting_the_order_stays():
    rows = f32([0, 1], [2, 3], [0, 0])
    graph = linear_graph((rows, None), (f32([1, 2, 3]), None))
    assert _tidy(graph, sort=False).graph.weights["fc1.weight"].values.tolist() == [[0, 1], [2, 3]]
    assert _tidy(graph).graph.weights["fc1.weight"].values.tolist() == [[2, 3], [0, 1]]
