"""Small graphs of every kind that a model file must hold, and a writer of files that are wrong but have a right checksum."""

import json
import zlib
from dataclasses import replace

import numpy as np

from mlperf_opt.artifacts import container, model_file
from mlperf_opt.graph import Affine, Graph, GraphBuilder, Node, State, Weight, verify
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
    renamed = {"fc.weight": "packed", "fc.bias": "graph"}
    node = replace(graph.nodes[0], inputs=("x", "packed", "graph"))
    return verify(replace(graph, nodes=(node,), weights={renamed[k]: w for k, w in graph.weights.items()}))


GRAPHS = {
    "float": float_graph,
    "pruned": pruned_graph,
    "half": half_graph,
    "quantized": quantized_graph,
    "stateful": stateful_graph,
    "edge": edge_graph,
}


def forged(layout: bytes | object, packed: bytes = b"", native=None, metadata=None) -> bytes:
    """A file with a right checksum and any layout (JSON-ready data, or its compressed bytes)."""
    compressed = layout if isinstance(layout, bytes) else zlib.compress(json.dumps(layout).encode())
    native = native or {}
    head = model_file._digest(compressed, packed, native) + compressed
    tensors = {"graph": np.frombuffer(head, np.uint8), **native}
    if packed:
        tensors["packed"] = np.frombuffer(packed, np.uint8)
    metadata = metadata or {"format": "mlperf_opt", "version": "1"}
    return container.to_bytes(container.Content(tensors, metadata))
