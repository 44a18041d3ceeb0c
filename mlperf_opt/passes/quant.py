"""quant: store and multiply in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import PassError, did_you_mean
from mlperf_opt.graph import Affine, Dense, Graph, Node, Weight, split_name, verify
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.passes.calibration import Method, calibrate, coarse, mean_step, on_grid
from mlperf_opt.passes.int8_graph import to_dynamic, to_static
from mlperf_opt.passes.ramp import biases
from mlperf_opt.settings import require

Array = NDArray[Any]
_WEIGHT_BITS = 8


@dataclass(frozen=True)
class Quant(Pass):
    """Store and multiply in fewer bits.

    int8 weights are symmetric, stored as int8 and multiplied as integers (Jacob et al., arXiv:1712.05877; scales per output
    channel: Krishnamoorthi, arXiv:1806.08342). Of fewer bits they are codes in the file, and the arithmetic is float32. fp16
    stores all parameters in half and computes in float32.

    Attributes:
        dtype: int8 or fp16.
        scheme: int8 only. static: activations are uint8 too, on ranges from the calibration split, and stay integers between
            layers; dynamic: the range is each row's own, found while running; weight_only: weights are int8 in the file, the
            arithmetic is float32.
        bits: of a weight, 2 to 8; fewer than 8 with scheme=weight_only alone. They say how far the codes reach: in the
            file a code takes what its frequency asks for.
        granularity: channel (a scale for each output) or tensor (one scale).
        step: what the scale follows. max: the largest magnitude has the largest code; mean: step_ratio times the mean
            magnitude of what is not zero, none of which becomes zero (scheme=weight_only alone).
        step_ratio: of step=mean.
        biases: float32, or grid: multiples of their weight's scale (scheme=weight_only alone).
        calibration: static only: minmax, percentile or mse.
        percentile: of calibration=percentile, in percent.
        skip: names of nodes that stay float32.
    """

    dtype: Literal["int8", "fp16"] = "int8"
    scheme: Literal["static", "dynamic", "weight_only"] = "static"
    bits: int = 8
    granularity: Literal["channel", "tensor"] = "channel"
    step: Literal["max", "mean"] = "max"
    step_ratio: float = 0.6
    biases: Literal["float32", "grid"] = "float32"
    calibration: Method = "minmax"
    percentile: float = 99.99
    skip: tuple[str, ...] = ()

    effect: ClassVar = "quantizes"
    tolerance: ClassVar = 0.01
    not_after: ClassVar = ("quant", "cluster", "kv_cache")

    def __post_init__(self) -> None:
        require(50 < self.percentile <= 100, "percentile", self.percentile, "more than 50 and at most 100")
        require(2 <= self.bits <= _WEIGHT_BITS, "bits", self.bits, f"2 to {_WEIGHT_BITS}")
        require(0 < self.step_ratio < float("inf"), "step_ratio", self.step_ratio, "a number > 0")
        in_file_alone = self.dtype == "int8" and self.scheme == "weight_only"
        for name, ordinary in (("bits", _WEIGHT_BITS), ("step", "max"), ("biases", "float32")):
            value = getattr(self, name)
            require(value == ordinary or in_file_alone, name, value, f"{ordinary}, or dtype=int8 with scheme=weight_only")

    def check(self, graph: Graph) -> None:
        if any(not isinstance(w.encoding, Dense) or w.values.dtype != np.float32 for w in graph.parameters().values()):
            raise PassError(f"quant: the weights of {graph.name} are quantized already")
        nodes = {reader for name in graph.matrices() for reader in graph.readers(name)}
        for name in self.skip:
            if name not in nodes:
                raise PassError(f"quant: skip={name}: no such node{did_you_mean(name, nodes)}")
        if self.dtype == "fp16":
            check_half("quant", self._halves(graph))

    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        if self.dtype == "fp16":
            halves = {name: Weight(w.values.astype(np.float16)) for name, w in self._halves(graph).items()}
            return PassResult(verify(graph.with_weights(halves)))
        chosen = {name: node for name, node in graph.matrices().items() if not self._skips(graph, name)}
        axis = 0 if self.granularity == "channel" else None
        if self.scheme == "weight_only":
            return PassResult(verify(graph.with_weights(self._in_file_alone(graph, chosen, axis))))
        products = {name: node for name, node in chosen.items() if node.op != "embedding"}
        grids = {}
        if self.scheme == "static":
            inputs = {node.argument("x") for node in products.values()}
            grids = calibrate(graph, inputs, context.data, self.calibration, self.percentile)
        weights = {}
        for name, node in chosen.items():
            floor = _bias_floor(graph, node, grids) if self.scheme == "static" and name in products else None
            weights[name] = quantize_weight(graph.weights[name], axis, floor)
        graph = _quantize_embeddings(graph.with_weights(weights))
        nodes = [node.output for node in products.values()]
        graph = to_static(graph, nodes, grids) if self.scheme == "static" else to_dynamic(graph, nodes)
        return PassResult(verify(graph), {"quantized": sorted(chosen)})

    def _in_file_alone(self, graph: Graph, chosen: Mapping[str, Node], axis: int | None) -> dict[str, Weight]:
        """Codes whose real values the float arithmetic reads."""
        found: dict[str, Weight] = {}
        owners = biases(graph, list(chosen)) if self.biases == "grid" else {}
        for name in chosen:
            weight = graph.weights[name]
            if self.step == "mean":
                found[name] = quantize_by_mean(weight, axis, self.step_ratio, self.bits)
            else:
                found[name] = quantize_weight(weight, axis, bits=self.bits)
            if name in owners:
                found[owners[name]] = bias_on_grid(graph.weights[owners[name]], found[name])
        return found

    def _skips(self, graph: Graph, weight: str) -> bool:
        """Whether any of the nodes that share a weight is to stay float32."""
        return not set(self.skip).isdisjoint(graph.readers(weight))

    def _halves(self, graph: Graph) -> dict[str, Weight]:
        """The parameters that fp16 stores in half: all but those of skipped nodes."""
        skipped = {split_name(argument)[0] for name in self.skip for argument in graph.node(name).inputs}
        return {name: weight for name, weight in graph.parameters().items() if name not in skipped}


def quantize_by_mean(weight: Weight, axis: int | None, ratio: float, bits: int) -> Weight:
    """Return ``weight`` as codes of at most so many bits: scale = ``ratio`` times the mean magnitude of what is not zero.

    Zeros stay zeros, and nothing else becomes one. What lies beyond the largest code saturates.
    """
    dense = weight.dense()
    like = Weight(np.zeros(dense.shape, np.int8), Affine(mean_step(dense, axis, ratio), axis, bits))
    assert isinstance(like.encoding, Affine)
    kept = np.where(dense != 0, on_grid(dense, like.encoding.spread(dense.ndim)), np.float32(0))
    return like.encode(kept)


def bias_on_grid(bias: Weight, weight: Weight) -> Weight:
    """Return ``bias`` as multiples of the scale of ``weight``, in the narrowest integers that hold them."""
    assert isinstance(weight.encoding, Affine)
    dense = bias.dense()
    peak = float(np.abs(np.rint(dense.astype(np.float64) / weight.encoding.scale)).max(initial=0))
    width = next((width for width in (8, 16) if peak <= 2 ** (width - 1) - 1), 32)
    like = Weight(np.zeros(dense.shape, f"int{width}"), Affine(weight.encoding.scale, weight.encoding.axis, width))
    return like.encode(dense)


def quantize_weight(weight: Weight, axis: int | None, floor: Array | None = None, bits: int = _WEIGHT_BITS) -> Weight:
    """Return ``weight`` as integer codes: scale = max |w| / (2^(bits-1) - 1) along ``axis`` (None: of the whole tensor).

    Args:
        weight: real values of any shape.
        axis: the axis of the output channels.
        floor: a smallest scale per channel (see `_bias_floor`).
        bits: of a code, 2 to 8.
    """
    dense = weight.dense()
    limit = 2 ** (bits - 1) - 1
    others = tuple(a for a in range(dense.ndim) if a != axis)
    peak = np.abs(dense).max(axis=others if axis is not None else None).astype(np.float64)
    scale = peak / limit
    if floor is not None:
        scale = np.maximum(scale, floor if axis is not None else floor.max())
    # An all-zero channel has codes 0 under any scale; 1 keeps the arithmetic ordinary.
    scale = np.where(scale > 0, scale, 1.0)
    scale = coarse(np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32))
    return Weight(np.zeros(dense.shape, np.int8), Affine(scale, axis, bits)).encode(dense)


def _bias_floor(graph: Graph, node: Node, grids: dict[str, tuple[Array, Array]]) -> Array | None:
    """Smallest weight scale per channel at which the int32 bias, at x_scale * w_scale, does not saturate.

    It matters for channels whose weights are tiny, or pruned to zero, beside their bias. The product must not underflow
    either: a scale of 0 has no codes.
    """
    name, _ = split_name(node.argument("bias"))
    if not name:
        return None
    x_scale = np.float64(grids[node.argument("x")][0])
    smallest = np.float64(np.finfo(np.float32).tiny)
    return np.maximum(np.abs(graph.weights[name].dense().astype(np.float64)) / 2.0**24, smallest) / x_scale


def _quantize_embeddings(graph: Graph) -> Graph:
    """Look codes up instead of real values where the table is int8."""

    def rewrite(node: Node) -> Node:
        if node.op != "embedding" or isinstance(graph.weights[node.argument("table")].encoding, Dense):
            return node
        tokens, table = node.inputs
        return replace(node, op="qembedding", inputs=(tokens, f"{table}:codes", f"{table}:scale"))

    return replace(graph, nodes=tuple(rewrite(node) for node in graph.nodes))


def check_half(user: str, weights: dict[str, Weight]) -> None:
    """Raise `PassError`, in the name of the pass ``user``, for values beyond fp16."""
    largest = float(np.finfo(np.float16).max)
    for name, weight in weights.items():
        if np.abs(weight.values).max(initial=0) > largest:
            raise PassError(f"{user}: weight {name!r} holds values beyond {largest:g}, the end of fp16")
