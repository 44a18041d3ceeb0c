"""Every model after every combination of passes is a legal ONNX file that onnxruntime computes like the numpy runtime."""

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
import yaml

from mlperf_opt.config import build_config, load
from mlperf_opt.data import Split
from mlperf_opt.graph import LENGTHS
from mlperf_opt.onnx_export import IR_VERSION, OPSET, export
from mlperf_opt.passes import PassContext
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import (
    NUMPY,
    ONNX,
    OnnxExecutable,
    agreement,
    complete,
    difference,
    intermediate_values,
    is_quantized,
    onnx_runtime,
    stepwise,
)

MODELS = {"mlp": "digits", "cnn": "digits", "transformer": "reverse"}
QUANT = {
    "static": {},
    "tensor": {"granularity": "tensor", "calibration": "mse"},
    "dynamic": {"scheme": "dynamic"},
    "weight_only": {"scheme": "weight_only"},
    "fp16": {"dtype": "fp16"},
    "skip": {"skip": ["LAST"]},
}
LAST = {"mlp": "fc2", "cnn": "fc1", "transformer": "logits"}
OTHERS = {"prune": {"sparsity": 0.5}, "finetune": {"epochs": 1}}


def _combinations():
    yield ()
    yield from ((name,) for name in OTHERS)
    yield from (("prune", "finetune"), ("finetune", "prune"))
    yield from (("cluster",), ("prune", "cluster"), ("cluster", "finetune"))
    for quant in QUANT:
        yield (quant,)
        yield from ((quant, other) for other in OTHERS)
        yield from ((other, quant) for other in OTHERS)


CASES = [(model, passes, False) for model in MODELS for passes in _combinations()]
CASES += [("transformer", passes, True) for passes in _combinations()]
each_case = pytest.mark.parametrize(
    "model, passes, cached", CASES, ids=["-".join([m, *p, *(["cached"] if c else [])]) for m, p, c in CASES]
)
# those without a cache too: what a mistake in a mapping would hit
SOME = [case for case in CASES if len(case[1]) == 0 or case[1] in [(q,) for q in QUANT]]
each_kind = pytest.mark.parametrize(
    "model, passes, cached", SOME, ids=["-".join([m, *p, *(["cached"] if c else [])]) for m, p, c in SOME]
)


@cache
def _graph(model, passes, cached):
    """The graph after the passes, each on the graph of those before it, and the data (part of what passes look at)."""
    sizes = yaml.safe_load((resource_dir("conf") / "model" / f"{model}.yaml").read_text(encoding="utf-8"))
    sizes.pop("defaults", None)
    steps = {}
    for name in (*passes, *(["kv_cache"] if cached else [])):
        settings = {"pass": "quant", **QUANT[name]} if name in QUANT else {"pass": name, **OTHERS.get(name, {})}
        steps[name] = {k: [LAST[model]] if v == ["LAST"] else v for k, v in settings.items()}
    plain = {"model": sizes, "data": {"name": MODELS[model]}, "runtime": {}, "measure": {}, "passes": steps, "seed": 0}
    config = build_config(plain)
    if not config.steps:
        graph, data = load(config)
        return graph, replace(data, train=_rows(data.train, 160), calibration=_rows(data.calibration, 100))
    graph, data = _graph(model, passes, False) if cached else _graph(model, passes[:-1], False)
    return config.steps[-1].apply(graph, PassContext(data, 0, NUMPY)).graph, data


def _rows(split, count):
    return Split(split.inputs[:count], split.targets[:count])


def _both(graph, rows):
    return stepwise(NUMPY.prepare(graph), rows), stepwise(ONNX.prepare(graph), rows)


@each_case
def test_exports_passes_the_checker_and_agrees(model, passes, cached):
    graph, data = _graph(model, passes, cached)
    content = export(graph)  # which runs the checker too
    proto = onnx.load_model_from_string(content)
    onnx.checker.check_model(proto, full_check=True)
    assert (proto.ir_version, [(o.domain, o.version) for o in proto.opset_import]) == (IR_VERSION, [("", OPSET)])
    rows = data.test.inputs[:100]
    expected = stepwise(NUMPY.prepare(graph), rows)
    for fuse in (True, False):  # as onnxruntime likes it, and operator by operator as the file says
        actual = stepwise(OnnxExecutable(graph, content, fuse=fuse), rows)
        assert difference(expected, actual, is_quantized(graph)) == ""
        assert agreement(expected, actual).equal_share >= (0.995 if is_quantized(graph) else 1.0)


@each_kind
def test_the_same_graph_gives_the_same_bytes(model, passes, cached):
    graph, _ = _graph(model, passes, cached)
    assert export(graph) == export(_graph.__wrapped__(model, passes, cached)[0])


@each_kind
def test_weights_are_inline_and_as_small_as_the_passes_made_them(model, passes, cached):
    graph, _ = _graph(model, passes, cached)
    proto = onnx.load_model_from_string(export(graph))
    assert all(t.data_location == onnx.TensorProto.DEFAULT and not t.external_data for t in proto.graph.initializer)
    stored = {t.name.removesuffix(":T"): onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert len(stored) == len(proto.graph.initializer), "no weight is stored twice"
    for name, weight in graph.weights.items():
        assert stored[name].dtype == weight.values.dtype
        assert sorted(stored[name].shape) == sorted(weight.values.shape)


@each_kind
def test_every_node_alone_computes_the_same_on_the_same_inputs(model, passes, cached):
    """Codes, scales found while running and whatever is made of integers bit for bit; floats up to a few last bits.

    That is what explains the differences of a whole quantized model: they begin at a float op, as one of its last bits.
    """
    graph, data = _graph(model, passes, cached)
    rows = data.test.inputs[:20]
    values = OnnxExecutable(graph)._feeds((rows,))
    for node in graph.nodes:
        alone = onnx_runtime.single_node(graph, node)
        given = {name: values[name] for name in alone.inputs}
        found = ONNX.prepare(alone)(*given.values())
        arguments = [values[n].copy() if n in values else _weight(graph, n) for n in node.inputs]
        expected = node.definition.forward(*arguments, **node.attributes)
        values[node.output] = expected
        exact = {"quantize", "row_scale", "row_zero", "cache_write", "advance", "max_pool2d", "flatten", "relu", "add"}
        exact |= {"embedding", "qembedding", "learned_positions"}
        assert found.dtype == expected.dtype
        if node.op in exact or expected.dtype != np.float32:
            np.testing.assert_array_equal(found, expected, err_msg=node.output)
        else:
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6 * np.abs(expected).max(), err_msg=node.output)


def _weight(graph, argument):
    name, _, part = argument.partition(":")
    return graph.weights[name].part(part) if name else None


def test_integer_networks_are_equal_bit_for_bit():
    """Where only integer ops, relu and pooling stand between the quantizers, onnxruntime's arithmetic is ours."""
    for model in ("mlp", "cnn"):
        for passes in (("static",), ("tensor",), ("static", "prune"), ("dynamic",)):
            graph, data = _graph(model, passes, False)
            expected, actual = _both(graph, data.test.inputs)
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("passes, least", [((), 1.0), (("fp16",), 1.0), (("static",), 0.995), (("dynamic",), 0.995)])
def test_predictions_on_the_test_digits(model, passes, least):
    graph, data = _graph(model, passes, False)
    found = agreement(*_both(graph, data.test.inputs))
    assert found.predictions == 597 and found.equal_share >= least


@pytest.mark.parametrize("passes", [(), ("static",), ("dynamic",), ("weight_only",), ("fp16",)])
def test_greedy_tokens_of_the_transformer(passes):
    for cached in (False, True):
        graph, data = _graph("transformer", passes, cached)
        prompts = data.test.inputs[:200, : data.prompt]
        ours, theirs = (complete(runtime.prepare(graph), prompts, 8) for runtime in (NUMPY, ONNX))
        assert difference(ours, theirs, is_quantized(graph)) == ""


@each_kind
def test_a_cpu_without_vnni_computes_the_same(model, passes, cached, monkeypatch):
    """onnxruntime then takes other kernels and rewrites int8 weights to uint8."""
    monkeypatch.setattr(onnx_runtime, "cpu_flags", list)
    graph, data = _graph(model, passes, cached)
    expected, actual = _both(graph, data.test.inputs[:100])
    assert difference(expected, actual, is_quantized(graph)) == ""


@each_kind
def test_two_threads_compute_the_same(model, passes, cached):
    graph, data = _graph(model, passes, cached)
    rows = data.test.inputs[:64]
    one, two = (OnnxExecutable(graph, threads=threads)(rows) for threads in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)


def test_the_names_of_a_cached_model():
    graph, _ = _graph("transformer", ("static",), True)
    proto = onnx.load_model_from_string(export(graph))
    inputs = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in proto.graph.input}
    outputs = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in proto.graph.output}
    caches = [f"layer{layer}.attention.{kind}" for layer in (1, 2) for kind in ("keys", "values")]
    assert inputs == {
        "tokens": ["N", "T"],
        LENGTHS: ["N"],
        "past.position": ["N"],
        **{f"past.{name}": ["N", 2, "L", 16] for name in caches},
    }
    assert outputs == {
        "logits": ["N", "T", 27],
        "present.position": ["N"],
        **{f"present.{name}": ["N", 2, "L", 16] for name in caches},
    }


def test_the_operators_of_a_static_model_are_qdq():
    graph, _ = _graph("cnn", ("static",), False)
    proto = onnx.load_model_from_string(export(graph))
    kinds = [node.op_type for node in proto.graph.node]
    qdq = ["DequantizeLinear"] * 3
    assert kinds == [
        *("QuantizeLinear", *qdq, "Conv", "QuantizeLinear", "MaxPool"),
        *(*qdq, "Conv", "QuantizeLinear", "MaxPool", "Flatten", *qdq, "Gemm"),
    ]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    relu = next(n for n in graph.nodes if n.output == "conv1").argument("y_zero").partition(":")[0]
    assert stored[relu] == 0, "a relu is the output grid: zero point 0"
    np.testing.assert_array_equal(
        stored["conv1:bias_scale"],
        stored[graph.node("conv1").argument("x_scale")] * stored["conv1.weight:scale"],
    )


def test_intermediate_values_are_those_of_the_numpy_runtime():
    graph, data = _graph("cnn", ("static",), False)
    names = {node.output for node in graph.nodes}
    expected, seen = intermediate_values(graph, names, data.test.inputs[:9]), {}
    ONNX.prepare(graph).observe(lambda node, value, _ns: seen.update({node.output: value}), data.test.inputs[:9])
    for name in names:
        np.testing.assert_array_equal(seen[name], expected[name])
