"""The builder, the rules of a legal graph, and the printed form."""

from dataclasses import replace

import numpy as np
import pytest

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Affine, Graph, GraphBuilder, Node, State, Weight, to_text, verify
from mlperf_opt.ops import Spec

W = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.zeros(3, np.float32)


def _small():
    build = GraphBuilder("small")
    x = build.input("x", ("N", 4), "float32")
    h = build.node("linear", "fc", x, weight=W, bias=B)
    return build.finish(build.node("relu", "act", h))


def _graph(nodes, weights=(), inputs=None, outputs=None, state=()):
    nodes = tuple(Node(*node) for node in nodes)
    inputs = {"x": Spec(("N", 4), "float32")} if inputs is None else inputs
    outputs = (nodes[-1].output,) if outputs is None else outputs
    return Graph("broken", nodes, dict(weights), inputs, outputs, state)


def test_the_builder_names_weights_by_node_and_argument():
    graph = _small()
    assert list(graph.weights) == ["fc.weight", "fc.bias"]
    assert [node.inputs for node in graph.nodes] == [("x", "fc.weight", "fc.bias"), ("fc",)]
    assert graph.specs["act"] == Spec(("N", 3), "float32")
    assert graph.outputs == ("act",)
    np.testing.assert_array_equal(graph.weights["fc.weight"].dense(), W)


def test_the_builder_leaves_an_optional_argument_absent():
    build = GraphBuilder("g")
    graph = build.finish(build.node("linear", "fc", build.input("x", ("N", 4), "float32"), weight=W))
    assert graph.nodes[0].inputs == ("x", "fc.weight", "")
    assert graph.nodes[0].argument("bias") == ""


def test_the_builder_reads_integers_as_stored():
    build = GraphBuilder("g")
    grid = {"scale": np.float32(0.5).reshape(()), "zero": np.uint8(3).reshape(())}
    graph = build.finish(build.node("quantize", "q", build.input("x", ("N", 4), "float32"), **grid))
    assert graph.nodes[0].inputs == ("x", "q.scale", "q.zero:codes")
    assert graph.specs["q.zero:codes"] == Spec((), "uint8")


@pytest.mark.parametrize(
    "op, values, settings, text",
    [
        ("liner", ["x"], {"weight": W}, "unknown op 'liner'; did you mean 'linear'"),
        ("linear", ["x"], {"weight": W, "bais": B}, "linear has no argument 'bais'; did you mean 'bias'"),
        ("relu", ["x", "x"], {}, "relu has no argument left for x"),
        ("relu", [], {}, "the argument 'x' of relu is missing"),
        ("linear", ["x"], {}, "the argument 'weight' of linear is missing"),
    ],
)
def test_the_builder_refuses(op, values, settings, text):
    build = GraphBuilder("g")
    build.input("x", ("N", 4), "float32")
    with pytest.raises(GraphError, match=text):
        build.finish(build.node(op, "n", *values, **settings))


def test_an_input_is_declared_once():
    build = GraphBuilder("g")
    build.input("x", ("N", 4), "float32")
    with pytest.raises(GraphError, match="'x' is declared twice"):
        build.input("x", ("N", 5), "float32")


RELU = ("relu", ("x",), "y")
LINEAR = ("linear", ("x", "w", ""), "y")
CACHE = {"cache": Spec(("N", 1, "L", 2), "float32"), "position": Spec(("N",), "int64"), "lengths": Spec(("N",), "int64")}
CACHE |= {"new": Spec(("N", "T", 2), "float32")}
WRITE = ("cache_write", ("cache", "new", "position", "lengths"), "kept")
INPUTS = {name: spec for name, spec in CACHE.items() if name != "cache"}


HALF = np.float32(0.5)


def _affine(codes, scale=HALF, axis=None, bits=8):
    return {"w": Weight(codes, Affine(np.asarray(scale), axis, bits))}


CODES = np.zeros((3, 4), np.int8)
BROKEN = {
    "a name twice": (_graph([RELU, RELU]), "the name 'y' is used twice"),
    "a node named as an input": (_graph([("relu", ("x",), "x")]), "the name 'x' is used twice"),
    "a weight named as a node": (_graph([LINEAR], {"w": Weight(W), "y": Weight(W)}), "the name 'y' is used twice"),
    "a reserved sign": (_graph([("relu", ("x",), "y:codes")]), "no legal name"),
    "an empty name": (_graph([("relu", ("x",), "")]), "no legal name"),
    "an unknown op": (_graph([("swish", ("x",), "y")]), "node 'y': unknown op 'swish'"),
    "too few inputs": (_graph([("add", ("x",), "y")]), "node 'y': add takes 2 inputs, got 1"),
    "too many inputs": (_graph([("relu", ("x", "x"), "y")]), "relu takes 1 inputs, got 2"),
    "a missing argument": (_graph([("add", ("x", ""), "y")]), "node 'y': the argument 'y' of add is missing"),
    "a value of later": (_graph([("relu", ("z",), "y"), ("relu", ("x",), "z")]), "node 'y': no value or weight 'z' before"),
    "its own value": (_graph([("relu", ("y",), "y")]), "node 'y': no value or weight 'y' before"),
    "an unknown weight": (_graph([LINEAR]), "node 'y': no value or weight 'w' before"),
    "an unknown part": (
        _graph([("linear", ("x", "w:scale", ""), "y")], {"w": Weight(W)}),
        "node 'y': .* has no part 'scale'",
    ),
    "shapes that don't fit": (_graph([LINEAR], {"w": Weight(W.T)}), "node 'y': linear: last axis"),
    "an attribute of no use": (_graph([(*RELU, {"slope": 1})]), "node 'y': .*slope"),
    "a missing attribute": (_graph([("max_pool2d", ("x",), "y", {"size": 2})]), "node 'y': .*stride"),
    "an attribute that is a list": (_graph([(*RELU, {"slope": [1]})]), "node 'y': the attribute 'slope' is no plain"),
    "an attribute of a wrong type": (_graph([("row_scale", ("x",), "y", {"axes": "1"})]), "node 'y': row_scale: axes=1"),
    "an unused weight": (_graph([RELU], {"w": Weight(W)}), "weight 'w' is used by no node"),
    "no such output": (_graph([RELU], outputs=("y", "z")), "output 'z' is made by no node"),
    "nan": (_graph([LINEAR], {"w": Weight(W * np.float32("nan"))}), "weight 'w' holds a value that is not finite"),
    "infinity": (_graph([LINEAR], {"w": Weight(np.full((3, 4), np.inf, np.float16))}), "not finite"),
    "a scale of zero": (_graph([LINEAR], _affine(CODES, np.float32(0))), "positive float32"),
    "a scale that is infinite": (_graph([LINEAR], _affine(CODES, np.float32("inf"))), "not finite"),
    "a scale that is nan": (_graph([LINEAR], _affine(CODES, np.float32("nan"))), "positive float32"),
    "a scale in float64": (_graph([LINEAR], _affine(CODES, np.float64(1))), "positive float32"),
    "too few scales": (_graph([LINEAR], _affine(CODES, np.ones(2, np.float32), 0)), r"float32 of shape \(3,\)"),
    "an axis too far": (_graph([LINEAR], _affine(CODES, np.ones(3, np.float32), 2)), "axis=2 is no axis of 2"),
    "a negative axis": (_graph([LINEAR], _affine(CODES, np.float32(1), -1)), "axis=-1 is no axis"),
    "bits too few": (_graph([LINEAR], _affine(CODES, bits=1)), "bits=1 must be a whole number in 2..32"),
    "bits too many": (_graph([LINEAR], _affine(CODES, bits=10**9)), "bits=1000000000 must"),
    "codes that are floats": (_graph([LINEAR], _affine(W)), r"integers in -127\.\.127"),
    "the code -128": (_graph([LINEAR], _affine(np.full((3, 4), -128, np.int8))), r"integers in -127\.\.127"),
    "codes over 4 bits": (_graph([LINEAR], _affine(CODES + np.int8(8), bits=4)), r"integers in -7\.\.7"),
    "a state without update": (
        _graph([RELU], state=(State("s", Spec((1,), "int64"), "gone"),)),
        "state 's': its update 'gone' must be a value",
    ),
    "a state of another shape": (
        _graph([RELU], state=(State("s", Spec(("N", 5), "float32"), "y"),)),
        r"state 's': its update 'y' must be a value of float32\[N,5\]",
    ),
    "an input that is overwritten": (_graph([WRITE], inputs=CACHE), "overwrites 'cache', which is no state that it updates"),
    "a state updated by another": (
        _graph([WRITE], inputs=INPUTS, state=(State("cache", CACHE["cache"], "cache"),)),
        "overwrites 'cache', which is no state that it updates",
    ),
    "a buffer read afterwards": (
        _graph([WRITE, ("relu", ("cache",), "late")], inputs=INPUTS, state=(State("cache", CACHE["cache"], "kept"),)),
        "node 'late' reads 'cache' after 'kept' has overwritten it",
    ),
}


@pytest.mark.parametrize("graph, text", BROKEN.values(), ids=BROKEN)
def test_verify_refuses(graph, text):
    with pytest.raises(GraphError, match=text):
        verify(graph)


def test_verify_accepts_a_cache_that_is_a_state():
    graph = _graph(
        [("relu", ("cache",), "early"), WRITE],
        inputs=INPUTS,
        state=(State("cache", CACHE["cache"], "kept"),),
        outputs=("early",),
    )
    assert verify(graph) is graph
    assert to_text(graph).splitlines()[1] == "  state cache: float32[N,1,L,2], then kept"


def test_parameters_and_matrices_leave_out_scales_and_zero_points():
    build = GraphBuilder("q")
    x = build.input("x", ("N", 4), "float32")
    grid = {"scale": np.ones((), np.float32), "zero": np.zeros((), np.uint8)}
    graph = build.finish(build.node("dequantize", "d", build.node("quantize", "q", x, **grid), **grid))
    assert graph.parameters() == {}
    small = _small()
    assert list(small.parameters()) == ["fc.weight", "fc.bias"]
    assert {name: node.output for name, node in small.matrices().items()} == {"fc.weight": "fc"}


def test_with_weights_leaves_the_first_graph_alone():
    graph = _small()
    changed = graph.with_weights({"fc.bias": Weight(B + 1)})
    np.testing.assert_array_equal(graph.weights["fc.bias"].dense(), [0, 0, 0])
    np.testing.assert_array_equal(changed.weights["fc.bias"].dense(), [1, 1, 1])
    assert changed.nodes == graph.nodes


def test_graph_and_node_are_immutable():
    graph = _small()
    for mapping in (graph.weights, graph.inputs, graph.nodes[0].attributes, graph.specs):
        with pytest.raises(TypeError):
            mapping["new"] = 1
    with pytest.raises(AttributeError):
        graph.name = "other"


def test_macs_count_each_node_for_the_bound_batch():
    assert _small().macs({"N": 1}) == 12
    assert _small().macs({"N": 5}) == 60
    assert [cost.bytes for _, cost in _small().costs({"N": 2})] == [4 * (8 + 12 + 3 + 6), 4 * (6 + 6)]
    with pytest.raises(GraphError, match="bind its named dimensions"):
        _small().macs({})


def test_lookups():
    graph = _small()
    assert graph.node("act").op == "relu"
    assert [node.output for node in graph.consumers("fc")] == ["act"]
    with pytest.raises(GraphError, match="no node makes 'x'"):
        graph.node("x")


def test_text_of_a_small_graph():
    assert to_text(_small()) == (
        "small(x: float32[N,4]) -> act\n"
        "  fc: float32[N,3] = linear(x, fc.weight: float32[3,4], fc.bias: float32[3])\n"
        "  act: float32[N,3] = relu(fc)"
    )
    pool = Node("max_pool2d", ("x",), "p", {"size": 2, "stride": 1})
    graph = replace(_small(), nodes=(pool,), weights={}, inputs={"x": Spec(("N", 1, 3, 3), "float32")}, outputs=("p",))
    assert to_text(graph).splitlines()[1] == "  p: float32[N,1,2,2] = max_pool2d(x) size=2 stride=1"
