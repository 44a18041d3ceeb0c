"""Rewrite a float graph whose matrices hold int8 codes into explicit integer arithmetic.

A linear or conv2d becomes qlinear or qconv2d. With static ranges a product whose value is read, through relu, max-pooling
and flattening, by other products alone hands on uint8 codes: activations stay integers from the first product to the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.graph import Affine, Graph, Node, Weight

Array = NDArray[Any]
_QUANTIZED = {"linear": "qlinear", "conv2d": "qconv2d"}
_ON_CODES = ("max_pool2d", "flatten")  # they choose or move codes, whatever the codes mean
# Half of int32: the other half is left to the sum of products, so that their total can't wrap.
_BIAS_BITS = 31


@dataclass
class _Rewrite:
    """The graph being written: nodes and weights so far, and values that now go by another name."""

    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def value(self, name: str) -> str:
        return self.renamed.get(name, name)

    def finish(self, graph: Graph) -> Graph:
        return replace(graph, nodes=tuple(self.nodes), weights=self.weights)


def to_static(graph: Graph, products: list[str], grids: dict[str, tuple[Array, Array]]) -> Graph:
    """Rewrite with fixed activation ranges.

    Args:
        graph: its matrices of the products hold int8 codes.
        products: names of the linear and conv2d nodes to rewrite.
        grids: scale and zero point of every value that a product reads.
    """
    out = _Rewrite(weights=dict(graph.weights))
    integer = {name: end for name in products if (end := _integer_chain(graph, name, products)) is not None}
    codes = set(integer.values())
    for node in graph.nodes:
        if node.output not in products:
            _copy_unless_absorbed(graph, node, integer, out)
            continue
        x = node.argument("x")
        scale, zero = _grid_weights(out, x, grids[x])
        if x not in codes and f"{x}.codes" not in {n.output for n in out.nodes}:
            out.nodes.append(Node("quantize", (out.value(x), scale, zero), f"{x}.codes"))
        source = out.value(x) if x in codes else f"{x}.codes"
        weight, bias = node.argument("weight"), node.argument("bias")
        if bias:
            encoding = out.weights[weight].encoding
            assert isinstance(encoding, Affine)
            like = Weight(
                np.zeros(graph.weights[bias].values.shape, np.int32),
                Affine(grids[x][0] * encoding.scale, encoding.axis, _BIAS_BITS),
            )
            out.weights[bias] = like.encode(graph.weights[bias].dense())
        target = integer.get(node.output)
        to_codes = _grid_weights(out, target, grids[target]) if target else ("", "")
        inputs = (source, scale, zero, f"{weight}:codes", f"{weight}:scale", f"{bias}:codes" if bias else "", *to_codes)
        # a product that makes codes has its relu in its grid, like a relu that is a node of its own
        attributes = {k: v for k, v in node.attributes.items() if not (target and k == "activation")}
        out.nodes.append(Node(_QUANTIZED[node.op], inputs, node.output, attributes))
    return out.finish(graph)


def to_dynamic(graph: Graph, products: list[str]) -> Graph:
    """Rewrite with a range for each row (linear) or sample (conv2d), found while running; the bias stays float32."""
    out = _Rewrite(weights=dict(graph.weights))
    for node in graph.nodes:
        if node.output not in products:
            out.nodes.append(node)
            continue
        x = node.argument("x")
        axes = 1 if node.op == "linear" else len(graph.specs[x].shape) - 1
        names = (f"{x}.scale", f"{x}.zero", f"{x}.codes")
        if names[0] not in {n.output for n in out.nodes}:
            out.nodes.append(Node("row_scale", (x,), names[0], {"axes": axes}))
            out.nodes.append(Node("row_zero", (x,), names[1], {"axes": axes}))
            out.nodes.append(Node("quantize", (x, names[0], names[1]), names[2]))
        weight, bias = node.argument("weight"), node.argument("bias")
        inputs = (names[2], names[0], names[1], f"{weight}:codes", f"{weight}:scale", bias, "", "")
        out.nodes.append(Node(_QUANTIZED[node.op], inputs, node.output, node.attributes))
    return out.finish(graph)


def _integer_chain(graph: Graph, product: str, products: list[str]) -> str | None:
    """Return the value, at or behind ``product``, that only products read; None if a float op or the output needs it."""
    activation = graph.node(product).attributes.get("activation", "")
    if activation not in ("", "relu"):
        return None
    value, first = product, activation == ""
    while value not in graph.outputs:
        readers = graph.consumers(value)
        if readers and all(r.output in products and r.argument("x") == value for r in readers):
            return value
        if len(readers) != 1 or readers[0].op not in (("relu", *_ON_CODES) if first else _ON_CODES):
            return None
        value, first = readers[0].output, False
    return None


def _copy_unless_absorbed(graph: Graph, node: Node, integer: dict[str, str], out: _Rewrite) -> None:
    """A relu right behind a product that makes codes is that product's grid: its zero point is 0, where codes saturate."""
    if node.op == "relu" and node.inputs[0] in integer:
        out.renamed[node.output] = out.value(node.inputs[0])
        return
    out.nodes.append(replace(node, inputs=tuple(out.value(name) for name in node.inputs)))


def _grid_weights(out: _Rewrite, value: str, grid: tuple[Array, Array]) -> tuple[str, str]:
    """Add the grid's two constants and return the arguments that name them."""
    scale, zero = grid
    out.weights[f"{value}.scale"] = Weight(np.asarray(scale))
    out.weights[f"{value}.zero"] = Weight(np.asarray(zero))
    return f"{value}.scale", f"{value}.zero:codes"
