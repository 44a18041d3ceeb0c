"""A graph as plain ONNX data: what becomes of names, weights and states, and what is refused."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from mlperf_opt.errors import ConfigError, GraphError
from mlperf_opt.extras import require_installed
from mlperf_opt.graph import Affine, Graph, GraphBuilder, Node, State, Weight
from mlperf_opt.onnx_export import export, input_name, output_name
from mlperf_opt.onnx_export.lower import lower
from mlperf_opt.ops import OPS, Spec
from mlperf_opt.ops.onnx_form import node
from mlperf_opt.runtimes import NUMPY, ONNX


def _linear(weight, rank=2, bias=None):
    build = GraphBuilder("tiny")
    x = build.input("x", (*("N", "T")[: rank - 1], weight.values.shape[1]), "float32")
    build.node("linear", "fc", x, weight=weight.dense(), **({} if bias is None else {"bias": bias}))
    return build.finish("fc").with_weights({"fc.weight": weight})


_F32 = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
_CODES = np.array([[1, -2, 3], [127, 0, -127]], np.int8)
WEIGHTS = {
    "float32": Weight(_F32),
    "float16": Weight(_F32.astype(np.float16)),
    "int8": Weight(_CODES, Affine(np.float32(0.5).reshape(()), None, 8)),
    "int8 per row": Weight(_CODES, Affine(np.array([0.5, 0.25], np.float32), 0, 8)),
    "int8 per column": Weight(_CODES, Affine(np.array([0.5, 0.25, 2], np.float32), 1, 8)),
    "int32": Weight(_CODES.astype(np.int32), Affine(np.array([0.5, 0.25], np.float32), 0, 31)),
    "int16, which ONNX's opset 20 can't dequantize": Weight(
        _CODES.astype(np.int16), Affine(np.float32(2).reshape(()), None, 12)
    ),
}


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=list(WEIGHTS))
def test_a_weight_means_the_same_however_it_is_stored(weight, rank, rng):
    """Rank 3 needs it transposed, and so its axis of scales."""
    graph = _linear(weight, rank)
    x = rng.normal(size=(4, 5, 3) if rank == 3 else (4, 3)).astype(np.float32)
    np.testing.assert_allclose(ONNX.prepare(graph)(x), NUMPY.prepare(graph)(x), rtol=1e-6, atol=1e-6)
    stored = lower(graph).initializers
    if weight.values.dtype != np.int16:
        name = "fc.weight" if rank == 2 else "fc.weight:T"
        assert stored[name].dtype == weight.values.dtype


def test_a_weight_that_two_nodes_read_is_stored_and_decoded_once():
    weight = WEIGHTS["int8 per row"]
    nodes = tuple(Node("linear", (x, "w", ""), y) for x, y in (("x", "a"), ("x", "b")))
    graph = Graph(
        "twice", (*nodes, Node("add", ("a", "b"), "sum")), {"w": weight}, {"x": Spec(("N", 3), "float32")}, ("sum",)
    )
    model = lower(graph)
    assert sum(n.kind == "DequantizeLinear" for n in model.nodes) == 1
    assert sorted(n for n in model.initializers if n.startswith("w")) == ["w", "w:scale"]


def test_names_are_those_of_the_graph_and_unique():
    model = lower(_linear(WEIGHTS["float16"], bias=np.zeros(2, np.float32)))
    assert list(model.inputs) == ["x"] and list(model.outputs) == ["fc"]
    assert [(n.kind, n.output) for n in model.nodes] == [("Cast", "fc.weight:real"), ("Gemm", "fc")]
    assert sorted(model.initializers) == ["fc.bias", "fc.weight"]


def test_a_constant_is_stored_once_unless_it_is_a_zero_point():
    """onnxruntime's exact mode rewrites int8 zero points by name, and fails on a shared one."""
    build = GraphBuilder("tiny")
    x = build.input("x", ("N", "T", 4), "float32")
    for layer in (1, 2):
        x = build.node("attention", f"attention{layer}", x, x, x, heads=2, causal=True)
    model = lower(build.finish(x))
    contents = [(a.dtype, a.shape, a.tobytes()) for a in model.initializers.values()]
    assert len(contents) == len(set(contents))


def _counter(update="count.next", outputs=("y",)):
    nodes = (
        Node("advance", ("count", "step"), "count.next"),
        Node("add", ("x", "x"), "y"),
    )
    inputs = {"x": Spec(("N", 2), "float32"), "step": Spec(("N",), "int64")}
    return Graph("counter", nodes, {}, inputs, outputs, (State("count", Spec(("N",), "int64"), update),))


@pytest.mark.parametrize(
    "graph",
    [
        _counter(),
        _counter(outputs=("y", "count.next")),
        _counter(update="step"),
        replace(_counter(), state=(*_counter().state, State("other", Spec(("N",), "int64"), "count.next"))),
    ],
    ids=["made by a node", "an output too", "an input", "shared by two states"],
)
def test_a_state_comes_in_as_past_and_leaves_as_present(graph):
    model = lower(graph)
    states = [state.name for state in graph.state]
    assert list(model.inputs) == ["x", "step", *map(input_name, states)] == ["x", "step", *(f"past.{s}" for s in states)]
    assert list(model.outputs) == [*graph.outputs, *map(output_name, states)]
    session = onnxruntime.InferenceSession(export(graph), providers=["CPUExecutionProvider"])
    step, past = np.array([2, 5]), np.array([10, 20])
    feeds = {"x": np.ones((2, 2), np.float32), "step": step} | {input_name(s): past for s in states}
    found = dict(zip(model.outputs, session.run(None, feeds), strict=True))
    for state in graph.state:
        assert found[output_name(state.name)].tolist() == ((past + step) if state.update == "count.next" else step).tolist()
    assert found["y"].tolist() == [[2, 2], [2, 2]]


def test_named_dimensions_are_dynamic_axes():
    proto = onnx.load_model_from_string(export(_linear(WEIGHTS["float32"], 3)))
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        assert [d.dim_param for d in dims] == ["N", "T", ""] and dims[2].dim_value in (3, 2)


def test_scalars_stay_scalars():
    """numpy's ascontiguousarray would make vectors of them, which some engines take and some don't."""
    build = GraphBuilder("tiny")
    x = build.input("x", ("N", 2), "float32")
    scale, zero = np.array(0.5, np.float32), np.array(3, np.uint8)
    graph = build.finish(build.node("quantize", "q", x, scale=scale, zero=zero))
    proto = onnx.load_model_from_string(export(graph))
    assert {t.name: list(t.dims) for t in proto.graph.initializer} == {"q.scale": [], "q.zero": []}


def test_an_op_without_an_onnx_form_is_said_out_loud(monkeypatch):
    monkeypatch.setitem(OPS, "linear", replace(OPS["linear"], onnx=None))
    with pytest.raises(GraphError, match="^node 'fc': linear has no ONNX counterpart$"):
        export(_linear(WEIGHTS["float32"]))


def test_what_a_form_needs_to_know_is_named():
    nodes = (Node("cross_entropy", ("x", "ids"), "loss"),)
    inputs = {"x": Spec(("N", "V"), "float32"), "ids": Spec(("N",), "int64")}
    with pytest.raises(GraphError, match="^node 'loss': no ONNX form: the number of classes must be a number, and is 'V'$"):
        export(Graph("loss", nodes, {}, inputs, ("loss",)))


def test_an_output_that_is_an_input_is_refused():
    with pytest.raises(GraphError, match="the output 'x' is made by no node"):
        export(Graph("nothing", (), {}, {"x": Spec(("N",), "float32")}, ("x",)))


def test_a_name_that_would_be_used_twice_is_refused():
    graph = _counter()
    inputs = {**graph.inputs, "past.count": Spec(("N",), "int64")}
    with pytest.raises(GraphError, match=r"the name 'past\.count' would be used twice"):
        export(replace(graph, inputs=inputs))


def test_a_file_beyond_what_protobuf_holds_is_refused(monkeypatch):
    monkeypatch.setattr("mlperf_opt.onnx_export.onnx_file._MOST_BYTES", 20)
    with pytest.raises(GraphError, match=r"tiny: weights of 24 bytes don't fit an ONNX file"):
        export(_linear(WEIGHTS["float32"]))


def test_what_the_checker_refuses_is_one_line(monkeypatch):
    monkeypatch.setitem(OPS, "linear", replace(OPS["linear"], onnx=lambda *_: (node("Nonsense", "x"),)))
    with pytest.raises(GraphError, match=r"^onnx\.checker refuses the model: [^\n]*Nonsense[^\n]*$"):
        export(_linear(WEIGHTS["float32"]))


def test_a_missing_package_names_the_extra(monkeypatch):
    require_installed("export", "onnx", "onnxruntime")
    monkeypatch.setattr("mlperf_opt.extras.is_installed", lambda name: name != "onnxruntime")
    require_installed("export", "onnx")
    with pytest.raises(ConfigError, match=r"^export needs onnxruntime: pip install 'mlperf-opt\[onnx\]'$"):
        require_installed("export", "onnx", "onnxruntime")
