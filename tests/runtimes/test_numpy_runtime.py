"""The numpy runtime: names are any text, values and prepared graphs are let go of in time."""

import gc
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Graph, Node, Weight, verify
from mlperf_opt.networks import DigitMLP, MinimalTransformer
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
    """Two values at once, and what nobody reads."""
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


def _random_graph(rng):
    """20 nodes, each on any values before it; any one of these is the output, also the input."""
    values, nodes = ["x"], []
    for i in range(20):
        op = rng.choice(["relu", "add", "linear", "layer_norm"])
        first, second = rng.choice(values, 2)
        inputs = {"relu": (first,), "add": (first, second), "linear": (first, "w", ""), "layer_norm": (first, "g", "g")}[op]
        nodes.append(Node(op, inputs, f"n{i}", {"eps": float(rng.choice([0.1, 0.5]))} if op == "layer_norm" else {}))
        values.append(f"n{i}")
    weights = {"w": rng.normal(size=(3, 3)), "g": rng.normal(size=3)}
    return Graph(
        name="t",
        inputs={"x": Spec(("N", 3), "float32")},
        nodes=tuple(nodes),
        outputs=(str(rng.choice(values)),),
        weights={name: Weight(array.astype(np.float32)) for name, array in weights.items()},
    )


@pytest.mark.parametrize("seed", range(20))
def test_values_of_random_graphs_never_meet_in_a_slot(seed):
    graph = _random_graph(np.random.default_rng(seed))
    x = np.random.default_rng(seed).normal(size=(2, 3)).astype(np.float32)
    known = {"x": x.copy(), "": None, **{name: weight.values for name, weight in graph.weights.items()}}
    for node in graph.nodes:
        known[node.output] = OPS[node.op].forward(*(known[name] for name in node.inputs), **node.attributes)
    alive, sizes = {}, []

    def observe(node, value, _nanoseconds):
        np.testing.assert_array_equal(value, known[node.output])
        alive[node.output] = weakref.ref(value)
        still = {name for name, reference in alive.items() if reference() is not None}
        here = graph.nodes.index(node)
        wanted = {name for later in graph.nodes[here:] for name in later.inputs} | {node.output, *graph.outputs}
        assert still == wanted & alive.keys()
        sizes.append(len(still))

    executable = NumpyExecutable(graph)
    np.testing.assert_array_equal(executable.observe(observe, x), known[graph.outputs[0]])
    np.testing.assert_array_equal(executable(x), known[graph.outputs[0]])
    np.testing.assert_array_equal(x, known["x"])
    assert len(sizes) == 20 and max(sizes) > 2


def test_a_weight_may_be_what_a_graph_returns():
    graph = replace(_chain(["x", "w", "a", "b", "c"]), outputs=("w",))
    np.testing.assert_array_equal(NumpyExecutable(graph)(np.ones((1, 2), np.float32)), 2 * np.eye(2))


def test_a_weight_of_several_nodes_is_decoded_once(rng, monkeypatch):
    decoded, plain = [], Weight.part
    monkeypatch.setattr(Weight, "part", lambda self, part: decoded.append(id(self)) or plain(self, part))
    sizes = {"vocabulary": 11, "context": 4, "layers": 1, "dim": 8, "heads": 2, "hidden": 8}
    graph = MinimalTransformer(**sizes, tied=True).build("net", rng)
    readers = [node.op for node in graph.nodes if "embed.table" in node.inputs]
    assert readers == ["embedding", "linear"]
    NumpyExecutable(graph)
    assert decoded.count(id(graph.weights["embed.table"])) == 1


class _Method:
    def forward(self, x, _gamma, _beta, *, eps):
        return x * 0 + eps


def _closed_over(factor):
    return lambda x, _gamma, _beta, *, eps: x * 0 + factor * eps


@pytest.mark.parametrize(
    "forward",
    [
        lambda x, _gamma, _beta, *, eps: x * 0 + eps,
        lambda x, _gamma, _beta, eps: x * 0 + eps,
        lambda x, _gamma, _beta, *, unused=3, eps=7, **_: x * 0 + eps * unused / 3,
        lambda *arrays, **attributes: arrays[0] * 0 + attributes["eps"],
        _closed_over(1),
        _Method().forward,
        partial(lambda factor, x, _gamma, _beta, *, eps: x * 0 + factor * eps, 1),
    ],
)
def test_an_op_may_take_its_attributes_in_any_way(forward, monkeypatch):
    """Nodes with others beside them, and with none of it left behind in the op."""
    monkeypatch.setitem(OPS, "layer_norm", replace(OPS["layer_norm"], forward=forward))
    nodes = [Node("layer_norm", ("x", "g", "g"), f"n{i}", {"eps": eps}) for i, eps in enumerate((0.25, 4.0, 0.25))]
    total = (Node("add", ("n0", "n1"), "some"), Node("add", ("some", "n2"), "all"))
    graph = Graph(
        name="t",
        inputs={"x": Spec(("N", 2), "float32")},
        nodes=(*nodes, *total),
        outputs=("all",),
        weights={"g": Weight(np.ones(2, np.float32))},
    )
    np.testing.assert_array_equal(NumpyExecutable(graph)(np.ones((1, 2), np.float32)), [[4.5, 4.5]])
    assert NumpyExecutable(replace(graph, outputs=("n1",)))(np.ones((1, 2), np.float32)).tolist() == [[4, 4]]


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
