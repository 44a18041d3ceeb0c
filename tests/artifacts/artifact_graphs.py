"""Small graphs of every kind that a model file must hold, and a writer of files that are wrong but have a right checksum."""

import itertools
import json
import zlib
from dataclasses import replace

import numpy as np

from mlperf_opt.artifacts import container, envelope
from mlperf_opt.artifacts.payload import varint
from mlperf_opt.graph import Affine, Codebook, Graph, GraphBuilder, Node, State, Weight, verify
from mlperf_opt.ops import Spec


def float_graph(seed=0, inputs=8, hidden=6, outputs=3):
    rng = np.random.default_rng(seed)
    build = GraphBuilder("mlp")
    x = build.input("x", ("N", inputs), "float32")
    for name, (k, m) in {"fc1": (inputs, hidden), "fc2": (hidden, outputs)}.items():
        weight, bias = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=m).astype(np.float32)
        x = build.node("linear", name, x, weight=weight, bias=bias)
        x = build.node("relu", f"{name}.relu", x)
    return build.finish(x)


def pruned_graph(seed=0, sparsity=0.5, **sizes):
    graph = float_graph(seed, **sizes)
    new = {}
    for name in graph.matrices():
        values = graph.weights[name].values
        new[name] = Weight(np.where(np.abs(values) < np.quantile(np.abs(values), sparsity), np.float32(0), values))
    return verify(graph.with_weights(new))


def half_graph():
    graph = float_graph()
    return verify(graph.with_weights({k: Weight(w.values.astype(np.float16)) for k, w in graph.weights.items()}))


def affine(values, bits=8):
    """Per-channel symmetric codes with scales rounded to 16 bits."""
    scale = (np.abs(values).max(axis=1) / (2 ** (bits - 1) - 1) + 1e-6).astype(np.float32)
    scale = ((scale.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)
    codes = np.clip(np.rint(values / scale[:, None]), -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1)
    return Weight(codes.astype(np.int8), Affine(scale, 0, bits))


def quantized_graph(graph=None):
    """quantize -> qlinear with an int32 bias at x_scale * w_scale, for the first matrix of ``graph``."""
    graph = graph or pruned_graph()
    weight = affine(graph.weights["fc1.weight"].values)
    x_scale = np.float32(0.03125)
    bias_scale = x_scale * weight.encoding.scale
    bias = np.rint(graph.weights["fc1.bias"].values / bias_scale).astype(np.int32)
    weights = {
        "x.scale": Weight(np.array(x_scale)),
        "x.zero": Weight(np.array(128, np.uint8)),
        "fc1.weight": weight,
        "fc1.bias": Weight(bias, Affine(bias_scale, 0, 32)),
    }
    arguments = ("x.codes", "x.scale", "x.zero:codes", "fc1.weight:codes", "fc1.weight:scale", "fc1.bias:codes", "", "")
    nodes = (Node("quantize", ("x", "x.scale", "x.zero:codes"), "x.codes"), Node("qlinear", arguments, "fc1"))
    return verify(Graph("q", nodes, weights, dict(graph.inputs), ("fc1",)))


def stateful_graph():
    graph = float_graph()
    position = Spec(("N",), "int64")
    return verify(
        replace(
            graph,
            nodes=(*graph.nodes, Node("advance", ("position", "lengths"), "moved")),
            inputs={**graph.inputs, "lengths": position},
            state=(State("position", position, "moved"),),
        )
    )


def edge_graph():
    """Values that lossy code loses: -0.0, subnormals, the largest float; a 0-d weight; names that the format uses itself."""
    build = GraphBuilder("edge")
    x = build.input("x", ("N", 20), "float32")
    weight = np.zeros((20, 20), np.float32)
    weight[0, :4] = [-0.0, 1e-45, np.finfo(np.float32).max, -1e-38]
    graph = build.finish(build.node("linear", "fc", x, weight=weight, bias=np.full(20, 0.1, np.float32)))
    renamed = {"fc.weight": "g", "fc.bias": "packed"}
    node = replace(graph.nodes[0], inputs=("x", "g", "packed"))
    return verify(replace(graph, nodes=(node,), weights={renamed[k]: w for k, w in graph.weights.items()}))


def lenet(seed=0, inputs=36, hidden=(30, 20), classes=10, density=0.1, bits=4):
    """As compression leaves a net: few low-bit weights, more where others are; dead inputs and units; biases as codes."""
    rng = np.random.default_rng(seed)
    build = GraphBuilder("lenet")
    x, weights, sizes = build.input("x", ("N", inputs), "float32"), {}, (inputs, *hidden, classes)
    for place, (k, m) in enumerate(itertools.pairwise(sizes), 1):
        name = f"fc{place}"
        x = build.node("linear", name, x, weight=np.zeros((m, k), np.float32), bias=np.zeros(m, np.float32))
        x = build.node("relu", f"relu{place}", x) if place < len(sizes) - 1 else x
        chance = density * rng.gamma(1, 1, (m, 1)) * rng.gamma(1, 1, k) * (rng.random(k) < 0.7)
        limit = 2 ** (bits - 1) - 1
        codes = rng.integers(1, min(limit, 5) + 1, (m, k)) * rng.choice([-1, 1], (m, k)) * (rng.random((m, k)) < chance)
        step = np.float32(2.0**-5)
        weights[f"{name}.weight"] = Weight(codes.astype(np.int8), Affine(step, None, bits))
        weights[f"{name}.bias"] = Weight(rng.integers(-9, 10, m).astype(np.int8), Affine(step, None, 6))
    return verify(build.finish(x).with_weights(weights))


def lenet_conv(seed=0, filters=8, size=5, density=0.2):
    """Filters, and the dense layer behind them whose columns are the filters' squares; the filters as a codebook."""
    rng = np.random.default_rng(seed)
    build = GraphBuilder("conv")
    x = build.input("x", ("N", 1, 12, 12), "float32")
    x = build.node("conv2d", "conv1", x, weight=np.zeros((filters, 1, size, size), np.float32), stride=1, padding=0)
    x = build.node("flatten", "flatten", x)
    area = (12 - size + 1) ** 2
    x = build.node("linear", "fc1", x, weight=np.zeros((10, filters * area), np.float32), bias=np.zeros(10, np.float32))
    graph = build.finish(x)
    rare = rng.random((10, filters * area)) < density * rng.random((10, 1))
    centroids = np.unique(np.append(np.sort(rng.normal(size=7)), 0)).astype(np.float32)
    shared = Weight(np.zeros((filters, 1, size, size), np.uint8), Codebook(centroids))
    kernels = rng.normal(size=shared.values.shape) * (rng.random(shared.values.shape) < 0.4)
    weights = {
        "conv1.weight": shared.encode(kernels.astype(np.float32)),
        "fc1.weight": Weight((rare * rng.integers(-2, 3, rare.shape)).astype(np.int8), Affine(np.float32(0.5), None, 3)),
    }
    return verify(graph.with_weights(weights))


GRAPHS = {
    "float": float_graph,
    "pruned": pruned_graph,
    "half": half_graph,
    "quantized": quantized_graph,
    "stateful": stateful_graph,
    "edge": edge_graph,
    "lenet": lenet,
    "conv": lenet_conv,
}


def forged(layout: bytes | object, packed: bytes = b"", native=None, metadata=None) -> bytes:
    """A file with a right checksum and any layout (JSON-ready data, or its compressed bytes)."""
    compressed = layout if isinstance(layout, bytes) else envelope.deflate(json.dumps(layout).encode())
    native = native or {}
    head = envelope.checksum(compressed, packed, native)[:8] + varint(len(compressed)) + compressed + packed
    tensors = {"g": np.frombuffer(head, np.uint8), **native}
    return container.to_bytes(container.Content(tensors, metadata or {"mlperf_opt": "2"}))


def of_version_1(layout: object, packed: bytes = b"", native=None) -> bytes:
    """A file as the first version of the program wrote it."""
    compressed, native = zlib.compress(json.dumps(layout, separators=(",", ":")).encode(), 9), native or {}
    head = envelope.checksum(compressed, packed, native) + compressed
    tensors = {"graph": np.frombuffer(head, np.uint8), **native}
    if packed:
        tensors["packed"] = np.frombuffer(packed, np.uint8)
    return container.to_bytes(container.Content(tensors, {"format": "mlperf_opt", "version": "1"}))
