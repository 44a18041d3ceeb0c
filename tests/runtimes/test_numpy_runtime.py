"""The numpy runtime: names are any text, values and prepared graphs are let go of in time."""

import gc
import weakref

import numpy as np
import pytest

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Graph, Node, Weight, verify
from mlperf_opt.networks import DigitMLP
from mlperf_opt.ops import OPS, Spec
from mlperf_opt.runtimes import NUMPY
from mlperf_opt.runtimes.numpy_runtime import NumpyExecutable

HOSTILE = ["x), __import__('os').abort() #", "run", "node0", "\n    raise SystemExit\n", "None"]


def _chain(names, **attributes):
    """w (w relu(x)) for names (x, w, three nodes), with w = 2."""
    x, w, first, second, third = names
    nodes = (
        Node("relu", (x,), first, attributes),
        Node("linear", (first, w, ""), second),
        Node("linear", (second, w, ""), third),
    )
    weights = {w: Weight(2 * np.eye(2, dtype=np.float32))}
    return Graph(name="t", inputs={x: Spec(("N", 2), "float32")}, nodes=nodes, outputs=(third,), weights=weights)


def test_names_of_a_graph_are_any_text():
    graph = verify(_chain(HOSTILE))
    np.testing.assert_array_equal(NUMPY.prepare(graph)(np.array([[-3, 5]], np.float32)), [[0, 20]])


@pytest.mark.parametrize("key", ["x=1), node0(", "out", "more"])
def test_an_attribute_that_the_op_does_not_know_is_refused(key):
    with pytest.raises(GraphError):
        verify(_chain(["x", "w", "a", "b", "c"], **{key: 1}))


def test_a_value_is_let_go_of_behind_its_last_reader():
    alive, seen = {}, {}

    def observe(node, value, _nanoseconds):
        alive[node.output] = weakref.ref(value)
        seen[node.output] = sorted(name for name, reference in alive.items() if reference() is not None)

    output = NumpyExecutable(_chain(["x", "w", "a", "b", "c"])).observe(observe, np.ones((3, 2), np.float32))
    assert seen == {"a": ["a"], "b": ["a", "b"], "c": ["b", "c"]}
    assert alive["c"]() is output


def test_all_that_a_node_is_the_last_to_read_is_let_go_of():
    """Two values at once, what nobody reads, and a slot that is used again."""
    nodes = (
        Node("relu", ("x",), "a"),
        Node("linear", ("a", "w", ""), "b"),
        Node("add", ("a", "b"), "c"),
        Node("gelu", ("c",), "unread"),
        Node("add", ("c", "c"), "d"),
        Node("add", ("x", "d"), "e"),
    )
    weights = {"w": Weight(2 * np.eye(2, dtype=np.float32))}
    graph = Graph(name="t", inputs={"x": Spec(("N", 2), "float32")}, nodes=nodes, outputs=("e",), weights=weights)
    alive, seen = {}, {}

    def observe(node, value, _nanoseconds):
        alive[node.output] = weakref.ref(value)
        seen[node.output] = "".join(name[0] for name, reference in alive.items() if reference() is not None)

    x = np.array([[1, -1]], np.float32)
    np.testing.assert_array_equal(NumpyExecutable(graph).observe(observe, x), [[7, -1]])
    assert seen == {"a": "a", "b": "ab", "c": "abc", "unread": "cu", "d": "cd", "e": "de"}
    np.testing.assert_array_equal(x, [[1, -1]])


def test_calls_and_observed_calls_are_the_same(rng):
    graph = DigitMLP().build("net", rng)
    (spec,) = graph.inputs.values()
    x, nodes = rng.random((4, *spec.shape[1:]), np.float32), []
    executable = NumpyExecutable(graph)
    expected = executable(x)
    np.testing.assert_array_equal(executable.observe(lambda node, *_: nodes.append(node.output), x), expected)
    assert nodes == [node.output for node in graph.nodes]
    with pytest.raises(GraphError, match="takes 1 inputs, got 2"):
        executable(x, x)


def test_what_is_prepared_is_let_go_of_without_a_collector(rng):
    """A cycle would keep the weights and what an observer holds alive."""
    executable = NumpyExecutable(DigitMLP().build("net", rng))
    (spec,) = executable.graph.inputs.values()

    def observe(*_):
        pass

    gc.collect()
    gc.disable()
    try:
        executable.observe(observe, np.ones((1, *spec.shape[1:]), np.float32))
        alive = [weakref.ref(executable._plain), weakref.ref(observe)]
        del executable, observe
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("op, others", [("linear", ((4, 6),)), ("layer_norm", ((6,), (6,)))])
def test_as_many_numbers_in_another_shape_are_no_row(op, others):
    definition, weights = OPS[op], [np.ones(shape, np.float32) for shape in others]
    settings = {"eps": 1e-5} if op == "layer_norm" else {}
    arguments = [*weights, None] if op == "linear" else weights
    assert definition.forward(np.ones((1, 6), np.float32), *arguments, **settings).shape[0] == 1
    with pytest.raises(ValueError):
        definition.forward(np.ones((2, 3), np.float32), *arguments, **settings)
