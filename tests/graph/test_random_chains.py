"""Random chains of ops, built by the builder: they verify, and the specs are the executed shapes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_opt.graph import GraphBuilder, graph_hash, rebuild, split_name, structure, verify
from mlperf_opt.graph import arrays as stored_arrays
from mlperf_opt.ops import OPS


def _execute(graph, **inputs):
    """Run every node in order; a dozen lines that share nothing with the runtimes."""
    values = dict(inputs)
    for node in graph.nodes:
        arguments = []
        for name in node.inputs:
            if name and name not in values:
                weight, part = split_name(name)
                values[name] = graph.weights[weight].part(part)
            arguments.append(values[name] if name else None)
        values[node.output] = OPS[node.op].forward(*arguments, **node.attributes)
    return values


def _f(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def _image_step(draw, build, rng, place, x, shape):
    _, height, width = shape[1:]
    op = draw(st.sampled_from(["conv2d", "relu", "gelu", "max_pool2d", "avg_pool2d", "add", "layer_norm", "quantize"]))
    name = f"n{place}"
    if op == "conv2d":
        stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
        kernel = draw(st.integers(1, min(height, width, 3)))
        weights = {"weight": _f(rng, draw(st.integers(1, 4)), shape[1], kernel, kernel)}
        if draw(st.booleans()):
            weights["bias"] = _f(rng, len(weights["weight"]))
        return build.node(op, name, x, **weights, stride=stride, padding=padding)
    if op.endswith("pool2d"):
        size = draw(st.integers(1, min(height, width)))
        return build.node(op, name, x, size=size, stride=draw(st.integers(1, 3)))
    if op == "quantize":
        grid = {"scale": np.float32(0.1).reshape(()), "zero": np.uint8(120).reshape(())}
        return build.node("dequantize", name, build.node(op, f"{name}q", x, **grid), **grid)
    return _common_step(build, rng, op, name, x, shape)


def _common_step(build, rng, op, name, x, shape):
    if op == "add":
        return build.node(op, name, x, x)
    if op == "layer_norm":
        return build.node(op, name, x, gamma=_f(rng, shape[-1]), beta=_f(rng, shape[-1]), eps=1e-5)
    if op == "linear":
        return build.node(op, name, x, weight=_f(rng, 1 + len(name), shape[-1]))
    if op == "dynamic":
        attributes = {"axes": len(shape) - 1}
        grid = [build.node(row, f"{name}{row}", x, **attributes) for row in ("row_scale", "row_zero")]
        codes = build.node("quantize", f"{name}q", x, *grid)
        weight = rng.integers(-127, 128, (3, shape[-1])).astype(np.int8)
        return build.node("qlinear", name, codes, *grid, weight=weight, w_scale=np.full(3, 0.01, np.float32))
    return build.node(op, name, x)


@st.composite
def chains(draw):
    """A graph from an image to a vector, with the batch named."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    build = GraphBuilder("chain")
    shape = ("N", draw(st.integers(1, 3)), draw(st.integers(3, 9)), draw(st.integers(3, 9)))
    value = build.input("x", shape, "float32")
    input_shape = shape
    for place in range(draw(st.integers(0, 5))):
        value = _image_step(draw, build, rng, place, value, shape)
        shape = build.finish(value).specs[value].shape
    value = build.node("flatten", "flat", value)
    for place in range(draw(st.integers(0, 4))):
        shape = build.finish(value).specs[value].shape
        op = draw(st.sampled_from(["linear", "relu", "gelu", "softmax", "layer_norm", "add", "dynamic"]))
        value = _common_step(build, rng, op, f"v{place}", value, shape)
    return build.finish(value), _f(rng, draw(st.integers(1, 3)), *input_shape[1:])


@settings(max_examples=150, deadline=None)
@given(chains())
def test_specs_of_random_chains_are_the_executed_shapes(case):
    graph, x = case
    assert verify(graph) is graph
    values = _execute(graph, x=x)
    for name, spec in graph.specs.items():
        assert spec.bound({"N": len(x)}).shape == values[name].shape, name
        assert spec.dtype == str(values[name].dtype), name
    again = verify(rebuild(structure(graph), stored_arrays(graph)))
    assert graph_hash(again) == graph_hash(graph)
    np.testing.assert_array_equal(_execute(again, x=x)[graph.outputs[0]], values[graph.outputs[0]])
