"""Differentiation of whole graphs: against central differences, in linear time, over shared values and weights."""

from dataclasses import replace

import numpy as np
import pytest
from training_oracles import central_differences, evaluate, mean_cross_entropy

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Affine, Dense, Graph, GraphBuilder, Node, State, Weight
from mlperf_opt.networks import DigitMLP, MinimalTransformer, SimpleCNN
from mlperf_opt.ops import OPS, Spec
from mlperf_opt.training import arguments, gradients

TRANSFORMER = {"vocabulary": 5, "context": 4, "layers": 2, "dim": 4, "heads": 2, "hidden": 6}
NETWORKS = {
    "mlp": DigitMLP(image=(1, 2, 3), sizes=(6, 5, 4, 3)),
    "cnn": SimpleCNN(image=(2, 4, 4), channels=(2, 3), hidden=(4,), classes=3),
    "learned": MinimalTransformer(**TRANSFORMER),
    "sinusoidal": MinimalTransformer(**TRANSFORMER, positions="sinusoidal"),
    "rotary": MinimalTransformer(**TRANSFORMER, positions="rotary"),
    "shared heads": MinimalTransformer(**TRANSFORMER, kv_heads=1),
    "tied": MinimalTransformer(**TRANSFORMER, positions="rotary", kv_heads=1, tied=True),
}


def _double(graph, rng):
    """All weights in float64, moved off their special initial values (zeros, ones)."""
    return {name: w.dense() + 0.3 * rng.standard_normal(w.values.shape) for name, w in graph.parameters().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_whole_networks_are_central_differences(name, rng):
    network = NETWORKS[name]
    graph = network.build(name, rng)
    weights = _double(graph, rng)
    if name in ("mlp", "cnn"):
        inputs, targets = rng.standard_normal((3, *network.image)), np.array([0, 2, -1])
    else:
        inputs, targets = rng.integers(0, 5, (2, 4)), np.array([[-1, 4, 0, 1], [-1, -1, 2, 2]])
    loss, logits, found = gradients(graph, weights, (inputs,), targets)
    np.testing.assert_array_equal(logits, evaluate(graph, weights, (inputs,)))
    assert loss == pytest.approx(mean_cross_entropy(logits, targets), rel=1e-12)
    assert set(found) == set(weights)
    for weight, values in weights.items():
        expected = central_differences(lambda: mean_cross_entropy(evaluate(graph, weights, (inputs,)), targets), values)
        np.testing.assert_allclose(found[weight], expected, rtol=1e-5, atol=2e-8, err_msg=weight)
        assert found[weight].dtype == np.float64


@pytest.mark.parametrize("name, op", [("mlp", "linear"), ("cnn", "conv2d")])
def test_no_gradient_is_computed_for_the_data(name, op, monkeypatch, rng):
    """The first product gives none, the others do; nothing before it (flatten) is asked at all."""
    asked = []

    def recording(grad, out, *arrays, input_gradient=True, **attributes):
        asked.append(input_gradient)
        return plain(grad, out, *arrays, input_gradient=input_gradient, **attributes)

    plain = OPS[op].vjp
    graph = NETWORKS[name].build(name, rng)
    monkeypatch.setitem(OPS, op, replace(OPS[op], vjp=recording))
    if name == "mlp":
        monkeypatch.setitem(OPS, "flatten", replace(OPS["flatten"], vjp=None))
    x = rng.standard_normal((2, *NETWORKS[name].image)).astype(np.float32)
    gradients(graph, arguments(graph, {}), (x,), np.array([0, 1]))
    count = sum(node.op == op for node in graph.nodes)
    assert asked == [True] * (count - 1) + [False] and count > 1


def _count_calls(monkeypatch, *names):
    """Replace ops by copies that count their forward and vjp calls."""
    calls = {"forward": 0, "vjp": 0}

    def counting(kind, function):
        def call(*arrays, **attributes):
            calls[kind] += 1
            return function(*arrays, **attributes)

        return call

    for name in names:
        op = OPS[name]
        counted = replace(op, forward=counting("forward", op.forward), vjp=counting("vjp", op.vjp))
        monkeypatch.setitem(OPS, name, counted)
    return calls


def _scaled(build, x, weight):
    return build.node("linear", "start", x, weight=weight)


def test_a_chain_of_1500_nodes_is_walked_once(monkeypatch):
    """No recursion: a chain longer than Python's stack has a gradient, and each node is visited once each way."""
    build = GraphBuilder("chain")
    value = _scaled(build, build.input("x", ("N", 2), "float32"), np.eye(2, dtype=np.float32))
    for i in range(1500):
        value = build.node("relu", f"relu{i}", value)
    graph = build.finish(value)
    calls = _count_calls(monkeypatch, "relu")
    x, targets = np.array([[1.0, 2.0]], np.float32), np.array([0])
    _, logits, found = gradients(graph, arguments(graph, {}), (x,), targets)
    assert calls == {"forward": 1500, "vjp": 1500}
    np.testing.assert_array_equal(logits, x)  # positive numbers pass relu
    share = np.exp(2) / (np.exp(1) + np.exp(2))  # softmax of (1, 2), second class
    np.testing.assert_allclose(found["start.weight"], [[-share, -2 * share], [share, 2 * share]], rtol=1e-5)


@pytest.mark.parametrize("branches", ["same value twice", "two relus"])
def test_a_deep_diamond_takes_linear_time(monkeypatch, branches):
    """20 times v = v + v: a walk along each path would take 2^20 calls; the gradient is 2^20 times the seed's."""
    depth = 20
    build = GraphBuilder("diamond")
    value = _scaled(build, build.input("x", ("N", 2), "float32"), np.eye(2, dtype=np.float32) / 2**depth)
    for i in range(depth):
        left = right = value
        if branches == "two relus":
            left, right = build.node("relu", f"left{i}", value), build.node("relu", f"right{i}", value)
        value = build.node("add", f"add{i}", left, right)
    graph = build.finish(value)
    calls = _count_calls(monkeypatch, "add", "relu")
    x = np.array([[1.0, 2.0]], np.float32)
    _, logits, found = gradients(graph, arguments(graph, {}), (x,), np.array([1]))
    expected_calls = depth * (3 if branches == "two relus" else 1)
    assert calls == {"forward": expected_calls, "vjp": expected_calls}
    np.testing.assert_array_equal(logits, x)
    share = np.exp(1) / (np.exp(1) + np.exp(2))
    expected = 2**depth * share * np.array([[1, 2], [-1, -2]])
    np.testing.assert_allclose(found["start.weight"], expected, rtol=1e-5)


def test_a_shared_weight_gathers_the_gradients_of_all_its_uses(rng):
    """One matrix used three times: its gradient is the sum of those of three copies."""
    matrix = rng.standard_normal((3, 3)).astype(np.float32)

    def tower(names):
        nodes = tuple(Node("linear", (("x", "a", "b")[i], name, ""), ("a", "b", "c")[i], {}) for i, name in enumerate(names))
        return Graph("tower", nodes, {n: Weight(matrix) for n in names}, {"x": Spec(("N", 3), "float32")}, ("c",))

    x, targets = rng.standard_normal((4, 3)).astype(np.float32), np.array([0, 1, 2, 0])
    shared, separate = tower(("w", "w", "w")), tower(("w1", "w2", "w3"))
    _, _, found = gradients(shared, arguments(shared, {}), (x,), targets)
    _, _, parts = gradients(separate, arguments(separate, {}), (x,), targets)
    assert set(found) == {"w"} and set(parts) == {"w1", "w2", "w3"}
    np.testing.assert_allclose(found["w"], parts["w1"] + parts["w2"] + parts["w3"], rtol=1e-5, atol=1e-7)
    assert min(np.abs(part).max() for part in parts.values()) > 1e-3


def test_a_repeated_token_gathers_all_its_gradients():
    """Tokens 1 1 1 0 of zero logits: each place adds softmax minus one-hot of its target to its token's row."""
    build = GraphBuilder("table")
    tokens = build.input("tokens", ("N", "T"), "int64")
    graph = build.finish(build.node("embedding", "embed", tokens, table=np.zeros((3, 2), np.float32)))
    _, _, found = gradients(graph, arguments(graph, {}), (np.array([[1, 1, 1, 0]]),), np.array([[0, 0, 1, 1]]))
    half = 0.5 / 4  # the error of each place, divided by the four targets
    np.testing.assert_allclose(found["embed.table"], [[half, -half], [-half, half], [0, 0]], atol=1e-7)


def test_a_weight_that_the_output_does_not_need_has_a_gradient_of_zeros():
    build = GraphBuilder("branch")
    x = build.input("x", ("N", 2), "float32")
    build.node("linear", "dead", x, weight=np.ones((3, 2), np.float32))
    graph = build.finish(build.node("linear", "live", x, weight=np.ones((2, 2), np.float32)))
    _, _, found = gradients(graph, arguments(graph, {}), (np.ones((1, 2), np.float32),), np.array([0]))
    np.testing.assert_array_equal(found["dead.weight"], np.zeros((3, 2), np.float32))
    np.testing.assert_allclose(found["live.weight"], [[-0.5, -0.5], [0.5, 0.5]])


def _two_layers(rng):
    return DigitMLP(image=(1, 1, 4), sizes=(4, 3, 2)).build("mlp", rng)


SCALE = np.array([0.5, 0.25, 0.125], np.float32)
ENCODINGS = {
    "int8": (np.int8, Affine(SCALE, 0, 8), lambda m: np.clip(np.rint(m / SCALE[:, None]), -127, 127) * SCALE[:, None]),
    "int4": (np.int8, Affine(SCALE, 0, 4), lambda m: np.clip(np.rint(m / SCALE[:, None]), -7, 7) * SCALE[:, None]),
    "fp16": (np.float16, Dense(), lambda m: m.astype(np.float16).astype(np.float32)),
    "fp32": (np.float32, Dense(), lambda m: m),
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_masters_are_rounded_forward_and_get_the_gradient_unrounded(kind, rng):
    """The forward pass sees what the file will hold; the gradient is that of the rounded network, unchanged."""
    dtype, encoding, rounded = ENCODINGS[kind]
    graph = _two_layers(rng)
    coded = graph.with_weights({"fc1.weight": Weight(np.zeros((3, 4), dtype), encoding)})
    master = (5 * rng.standard_normal((3, 4))).astype(np.float32)
    given = arguments(coded, {"fc1.weight": master})
    np.testing.assert_array_equal(given["fc1.weight"], rounded(master))
    np.testing.assert_array_equal(given["fc2.weight"], graph.weights["fc2.weight"].values)
    x, targets = rng.standard_normal((5, 1, 1, 4)).astype(np.float32), np.array([0, 1, 1, 0, 1])
    plain = graph.with_weights({"fc1.weight": Weight(rounded(master).astype(np.float32))})
    loss, _, found = gradients(coded, given, (x,), targets)
    plain_loss, _, expected = gradients(plain, arguments(plain, {}), (x,), targets)
    assert loss == plain_loss
    np.testing.assert_array_equal(found["fc1.weight"], expected["fc1.weight"])
    assert np.abs(found["fc1.weight"]).max() > 1e-3


def test_ignored_targets_have_no_influence(rng):
    """Rows whose target is -1 may hold anything: loss and gradients are those of the other rows alone."""
    graph = _two_layers(rng)
    weights = arguments(graph, {})
    x, targets = rng.standard_normal((4, 1, 1, 4)).astype(np.float32), np.array([1, -1, 0, -1])
    changed = x.copy()
    changed[[1, 3]] = 50
    loss, _, found = gradients(graph, weights, (changed,), targets)
    expected_loss, _, expected = gradients(graph, weights, (x[[0, 2]],), targets[[0, 2]])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_a_graph_with_state_is_refused(rng):
    graph = _two_layers(rng)
    with_state = replace(graph, state=(State("s", Spec(("N",), "int64"), "s.next"),))
    with pytest.raises(GraphError, match="mlp has state: train it before it gets a cache"):
        gradients(with_state, {}, (np.zeros((1, 1, 1, 4), np.float32),), np.array([0]))


def test_an_op_without_a_gradient_is_named(monkeypatch, rng):
    graph = _two_layers(rng)
    monkeypatch.setitem(OPS, "relu", replace(OPS["relu"], vjp=None))
    with pytest.raises(GraphError, match="node 'relu1': relu has no gradient"):
        gradients(graph, arguments(graph, {}), (np.ones((1, 1, 1, 4), np.float32),), np.array([0]))
