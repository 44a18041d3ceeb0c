"""Graphs for the tests of the compiled runtime, and how its values are held to those of numpy."""

from functools import cache

import numpy as np
import yaml

from mlperf_opt.config import build_config, load
from mlperf_opt.data import Dataset, Split
from mlperf_opt.graph import GraphBuilder, split_name
from mlperf_opt.ops import OPS
from mlperf_opt.passes import PASSES, PassContext
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import COMPILED, NUMPY, RuntimeOptions

MODELS = {"mlp": "digits", "cnn": "digits", "transformer": "reverse", "lenet300": None, "lenet5": None}
BEFORE = {
    "none": {},
    "fuse": {"fuse": {}},
    "static": {"quant": {}},
    "static-tensor-mse": {"quant": {"granularity": "tensor", "calibration": "mse"}},
    "static-fuse": {"quant": {}, "fuse": {}},
    "fuse-static": {"fuse": {}, "quant": {}},
    "dynamic": {"quant": {"scheme": "dynamic"}},
    "dynamic-fuse": {"quant": {"scheme": "dynamic"}, "fuse": {}},
    "weight_only": {"quant": {"scheme": "weight_only"}},
    "fp16": {"quant": {"dtype": "fp16"}},
    "prune": {"prune": {"sparsity": 0.5}},
    "static-prune": {"quant": {}, "prune": {}},
}
# ops of the rest compute in float32, in an order of their own
EXACT = {
    *("quantize", "row_scale", "row_zero", "qlinear", "qconv2d", "max_pool2d", "flatten", "relu", "add"),
    *("embedding", "qembedding", "learned_positions", "sinusoidal_positions", "cache_write", "head_scale", "advance"),
}
CLOSE = 1e-5  # of the largest magnitude


def runtime(threads=1, isa="auto"):
    return COMPILED.configured(RuntimeOptions(threads, isa))


@cache
def model(name, before, cached=False):
    """Return (graph, inputs) of a shipped network behind some passes; of those on MNIST an untrained one, on noise."""
    sizes = yaml.safe_load((resource_dir("conf") / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    sizes.pop("defaults", None)
    plain = {
        "model": sizes,
        "data": {"name": MODELS[name] or "digits"},
        "runtime": {},
        "measure": {},
        "passes": {},
        "seed": 0,
    }
    config = build_config(plain)
    if MODELS[name]:
        graph, data = load(config)
    else:
        graph = config.model.untrained(0)
        images = np.random.default_rng(0).random((40, 1, 28, 28)).astype(np.float32)
        split = Split(images * (images > 0.6), np.zeros(40, np.int64))
        data = Dataset("noise", "classification", split, split, split)
    for name_, settings in {**BEFORE[before], **({"kv_cache": {}} if cached else {})}.items():
        graph = PASSES[name_](**settings)(graph, PassContext(data, 0, NUMPY)).graph
    return graph, data.calibration.inputs


def observed(graph, *inputs, isa="auto"):
    """Return node -> value, of the compiled runtime."""
    found = {}
    runtime(isa=isa).prepare(graph).observe(lambda node, value, _ns: found.update({node.output: value.copy()}), *inputs)
    return found


def check_nodes(graph, inputs, isa="auto"):
    """Every node, against the op's own forward on what the compiled runtime gave that node."""
    found = observed(graph, inputs, isa=isa)
    assert found.keys() == {node.output for node in graph.nodes}
    rows, time = inputs.shape[0], inputs.shape[1] if inputs.ndim == 2 else 1
    values = {next(iter(graph.inputs)): inputs, "lengths": np.full(rows, time, np.int64), **found}
    for state in graph.state:
        shape = state.spec.bound({"N": rows, "L": time}).shape
        values[state.name] = np.zeros(shape, state.spec.dtype)
    for node in graph.nodes:
        feeds = [None if n == "" else values[n].copy() if n in values else part(graph, n) for n in node.inputs]
        with np.errstate(all="ignore"):
            expected = OPS[node.op].forward(*feeds, **node.attributes)
        check_same(
            found[node.output], expected, exact=is_exact(node), floor=floor_of(node), what=f"{node.output} ({node.op})"
        )


def is_exact(node):
    return node.op in EXACT and node.attributes.get("activation") != "gelu"


def part(graph, argument):
    name, which = split_name(argument)
    return graph.weights[name].part(which)


def floor_of(*nodes):
    """Absolute error that is rounding: numpy's gelu is x times a small difference of large numbers, where x is negative."""
    return 1e-6 if any("gelu" in (node.op, node.attributes.get("activation")) for node in nodes) else 1e-36


def check_same(actual, expected, *, exact, floor=1e-36, what=""):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    if exact:
        np.testing.assert_array_equal(actual, expected, err_msg=what)
        return
    finite = expected[np.isfinite(expected)]
    largest = float(np.abs(finite).max()) if finite.size else 1.0
    np.testing.assert_allclose(actual, expected, rtol=CLOSE, atol=CLOSE * largest + floor, err_msg=what)


def check_against_numpy(graph, x, *, exact, isa="auto", threads=1):
    """The whole graph, compiled, against the numpy runtime."""
    with np.errstate(all="ignore"):  # scales at the ends of float32 overflow in both
        expected, actual = NUMPY.prepare(graph)(x), runtime(threads, isa).prepare(graph)(x)
    check_same(actual, expected, exact=exact, floor=floor_of(*graph.nodes))
    return actual


def f32(*values):
    return np.array(values, np.float32)


def scalar(value, dtype=np.float32):
    return np.asarray(value, dtype)


def codes_input(build, shape, zero):
    """Codes of one's choice: x is a float32 input of ``code - zero``, on a grid of steps of 1."""
    x = build.input("x", ("N", *shape), "float32")
    return build.node("quantize", "codes", x, scale=scalar(1), zero=scalar(zero, np.uint8))


def one_node(op, shape, *, dtype="float32", **settings):
    """A graph of one op on an input."""
    build = GraphBuilder("one")
    return build.finish(build.node(op, "y", build.input("x", shape, dtype), **settings))
