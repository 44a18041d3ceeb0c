"""Fusion: fewer nodes, outputs that are equal bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_opt.graph import GraphBuilder, fuse_graph, graph_hash, to_text, unfuse_graph
from mlperf_opt.runtimes import COMPILED, NUMPY

RNG = np.random.default_rng(0)


def _f(*shape):
    return np.asarray(RNG.normal(size=shape), np.float32)


def _ops(graph):
    return [(node.op, node.attributes.get("activation", "")) for node in graph.nodes]


def _start(width=6):
    build = GraphBuilder("net")
    return build, build.input("x", ("N", width), "float32")


def _linear(build, name, x, m=6, k=6):
    return build.node("linear", name, x, weight=_f(m, k), bias=_f(m))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_activation_becomes_the_last_step_of_its_product(activation):
    build, x = _start()
    hidden = build.node(activation, "act", _linear(build, "fc1", x))
    graph = build.finish(_linear(build, "fc2", hidden))
    fusion = fuse_graph(graph)
    assert fusion.fused == (("fc1", "act"),) and fusion.removed == ()
    assert _ops(fusion.graph) == [("linear", activation), ("linear", "")]
    assert [node.output for node in fusion.graph.nodes] == ["fc1", "fc2"], "the product keeps the name of its weights"
    assert f"activation={activation}" in to_text(fusion.graph)
    batch = _f(9, 6)
    np.testing.assert_array_equal(NUMPY.prepare(fusion.graph)(batch), NUMPY.prepare(graph)(batch))


def test_an_activation_that_is_the_output_keeps_its_name():
    build, x = _start()
    graph = build.finish(build.node("gelu", "act", _linear(build, "fc1", x)))
    fused = fuse_graph(graph).graph
    assert fused.outputs == ("act",) and [node.output for node in fused.nodes] == ["act"]


def _two_readers(build, x):
    product = _linear(build, "fc1", x)
    return build.node("add", "sum", product, build.node("relu", "act", product))


def _product_is_an_output(build, x):
    product = _linear(build, "fc1", x)
    build.node("relu", "act", product)
    return product


def _behind_a_sum(build, x):
    return build.node("relu", "act", build.node("add", "sum", _linear(build, "fc1", x), x))


def _two_activations(build, x):
    product = _linear(build, "fc1", x)
    return build.node("add", "sum", build.node("gelu", "a", product), build.node("relu", "b", product))


def _two_readers_by_another_name(build, x):
    """A flatten that does nothing stands between the product and its two readers."""
    product = build.node("flatten", "flat", _linear(build, "fc1", x))
    return build.node("add", "sum", product, build.node("relu", "act", product))


@pytest.mark.parametrize(
    "wire", [_two_readers, _product_is_an_output, _behind_a_sum, _two_activations, _two_readers_by_another_name]
)
def test_a_product_that_others_read_keeps_its_own_value(wire):
    build, x = _start()
    graph = build.finish(wire(build, x))
    fusion = fuse_graph(graph)
    assert fusion.fused == ()
    batch = _f(5, 6)
    np.testing.assert_array_equal(NUMPY.prepare(fusion.graph)(batch), NUMPY.prepare(graph)(batch))


def test_what_has_no_effect_goes():
    build = GraphBuilder("net")
    x = build.input("x", ("N", 2, 4, 4), "float32")
    x = build.node("relu", "act", build.node("conv2d", "conv", x, weight=_f(3, 2, 3, 3), stride=1, padding=1))
    build.node("conv2d", "unread", x, weight=_f(1, 3, 1, 1), stride=1, padding=0)
    x = build.node("relu", "again", build.node("max_pool2d", "pool", x, size=2, stride=2))
    x = build.node("flatten", "twice", build.node("flatten", "flat", x))
    graph = build.finish(_linear(build, "fc", x, 5, 12))
    fusion = fuse_graph(graph)
    assert set(fusion.removed) == {"unread", "again", "twice"} and fusion.fused == (("conv", "act"),)
    assert [node.output for node in fusion.graph.nodes] == ["conv", "pool", "flat", "fc"]
    assert "unread.weight" not in fusion.graph.weights
    batch = _f(3, 2, 4, 4)
    np.testing.assert_array_equal(NUMPY.prepare(fusion.graph)(batch), NUMPY.prepare(graph)(batch))


def test_a_graph_with_nothing_to_fuse_is_returned_as_it_is():
    build, x = _start()
    graph = build.finish(_linear(build, "fc1", x))
    assert fuse_graph(graph).graph is graph and unfuse_graph(graph) is graph
    build, x = _start()
    fused = fuse_graph(build.finish(build.node("relu", "act", _linear(build, "fc1", x)))).graph
    assert fuse_graph(fused).graph is fused, "fusing twice is fusing once"


_STEPS = st.lists(st.sampled_from(["linear", "relu", "gelu", "add", "flatten", "layer_norm", "dead"]), max_size=12)


@given(_STEPS, st.lists(st.integers(0, 99), min_size=12, max_size=12))
@settings(max_examples=150, deadline=None)
def test_any_graph_gives_the_same_numbers(steps, picks):
    """Fused and unfused again, in numpy bit for bit; compiled, which fuses by itself, up to rounding."""
    build, x = _start(4)
    values = [x]
    for place, (op, pick) in enumerate(zip(steps, picks, strict=False)):
        name, source = f"n{place}", values[-1 - pick % min(3, len(values))]
        if op == "linear":
            values.append(_linear(build, name, source, 4, 4))
        elif op == "add":
            values.append(build.node("add", name, source, values[pick % len(values)]))
        elif op == "layer_norm":
            values.append(build.node("layer_norm", name, source, gamma=_f(4), beta=_f(4), eps=1e-3))
        elif op == "dead":
            _linear(build, name, source, 3, 4)
        else:
            values.append(build.node(op, name, source))
    graph = build.finish(_linear(build, "out", values[-1], 5, 4))
    before = graph_hash(graph)
    fused = fuse_graph(graph).graph
    batch = _f(3, 4)
    expected = NUMPY.prepare(graph)(batch)
    np.testing.assert_array_equal(NUMPY.prepare(fused)(batch), expected)
    np.testing.assert_array_equal(NUMPY.prepare(unfuse_graph(fused))(batch), expected)
    assert not any(node.attributes.get("activation") for node in unfuse_graph(fused).nodes)
    assert fuse_graph(fused).graph is fused and graph_hash(graph) == before
    compiled = COMPILED.prepare(graph)(batch)
    np.testing.assert_allclose(compiled, expected, rtol=1e-4, atol=1e-5 * max(1, np.abs(expected).max()))
    np.testing.assert_array_equal(COMPILED.prepare(fused)(batch), compiled)
