"""The units of a network: neurons and filters that can be removed or put in another order.

A unit is a row of a linear or conv2d weight with everything that reads its value: columns of the products behind it. Between
them may stand what treats each unit for itself: relu, gelu, pooling, flatten. The network's outputs are never units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.graph import Affine, Dense, Graph, Node, Weight, split_name

Array = NDArray[Any]
_PRODUCTS = ("linear", "conv2d")
_ELEMENTWISE = ("relu", "gelu")
_POOLS = ("max_pool2d", "avg_pool2d")  # of a constant they are that constant


@dataclass(frozen=True)
class Layer:
    """A product whose units are its own business: nothing but other products reads them.

    Attributes:
        node: the product that makes the units.
        between: the elementwise nodes behind it, in order.
        readers: the products that read the units.
    """

    node: Node
    between: tuple[Node, ...]
    readers: tuple[Node, ...]

    @property
    def weight(self) -> str:
        """Name of the weight whose rows are the units."""
        return split_name(self.node.argument("weight"))[0]

    @property
    def bias(self) -> str:
        """Name of the bias, ``""`` without one."""
        return split_name(self.node.argument("bias"))[0]

    def units(self, graph: Graph) -> int:
        """Return how many there are."""
        return graph.weights[self.weight].values.shape[0]


def layers(graph: Graph) -> list[Layer]:
    """Return the layers whose units can be removed, in the order of the nodes."""
    uses: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.inputs:
            uses[split_name(name)[0]] = uses.get(split_name(name)[0], 0) + 1
    found = []
    for node in graph.nodes:
        layer = _layer(graph, node) if node.op in _PRODUCTS else None
        if layer is not None and all(_is_own(graph, product, uses) for product in (node, *layer.readers)):
            found.append(layer)
    return found


def _is_own(graph: Graph, node: Node, uses: Mapping[str, int]) -> bool:
    """Whether the product's weight and bias belong to it alone, so that their shape is its own business."""
    names = [name for name in node.inputs[1:] if name]
    return all(uses[split_name(name)[0]] == 1 and split_name(name)[0] in graph.weights for name in names)


def _layer(graph: Graph, node: Node) -> Layer | None:
    between: list[Node] = []
    readers: list[Node] = []
    values = [node.output]
    while values:
        value = values.pop(0)
        consumers = graph.consumers(value)
        if value in graph.outputs or not consumers:
            return None
        for consumer in consumers:
            is_flat = consumer.op == "flatten" and len(graph.specs[value].shape) in (2, 4)
            if consumer.op in _PRODUCTS and consumer.argument("x") == value and consumer.inputs.count(value) == 1:
                readers.append(consumer)
            elif consumer.op in (*_ELEMENTWISE, *_POOLS) or is_flat:
                between += [consumer] if consumer.op in _ELEMENTWISE else []
                values.append(consumer.output)
            else:
                return None
    chained = len({n.inputs[0] for n in between}) == len(between)  # two elementwise branches would be two constants
    return Layer(node, tuple(between), tuple(readers)) if readers and (chained or not between) else None


def by_unit(graph: Graph, layer: Layer, reader: Node) -> Array:
    """Return the real weights of a reader as (outputs, units, what it reads of each unit)."""
    dense = graph.weights[split_name(reader.argument("weight"))[0]].dense()
    return dense.reshape(len(dense), layer.units(graph), -1)


def scores(graph: Graph, layer: Layer) -> Array:
    """Return ||w_in|| * ||w_out|| of each unit, float64."""
    rows = graph.weights[layer.weight].dense().reshape(layer.units(graph), -1).astype(np.float64)
    behind = sum(np.square(by_unit(graph, layer, reader), dtype=np.float64).sum(axis=(0, 2)) for reader in layer.readers)
    return np.linalg.norm(rows, axis=1) * np.sqrt(behind)


def select(graph: Graph, layer: Layer, units: Array) -> Graph:
    """Return the graph with these units alone, in this order.

    Where a removed unit is a constant (all its weights are zero), what it adds to the products behind it moves into their
    biases, as far as they can hold it (see `foldable`).

    Args:
        graph: the network.
        layer: one of `layers(graph)`.
        units: distinct indices, at least one.
    """
    removed = np.setdiff1d(np.arange(layer.units(graph)), units)
    constant = np.where(foldable(graph, layer), constants(graph, layer), 0)
    constant[units] = 0
    changed = {layer.weight: _take(graph.weights[layer.weight], units, 0)}
    if layer.bias:
        changed[layer.bias] = _take(graph.weights[layer.bias], units, 0)
    nodes = {node.output: node for node in graph.nodes}
    for reader in layer.readers:
        name, bias = (split_name(reader.argument(part))[0] for part in ("weight", "bias"))
        added = by_unit(graph, layer, reader)[:, removed].sum(axis=2, dtype=np.float64) @ constant[removed]
        if added.any():
            if not bias:  # foldable says that it may get one
                bias = f"{reader.output}.bias"
                nodes[reader.output] = replace(reader, inputs=(*reader.inputs[:2], bias, *reader.inputs[3:]))
                changed[bias] = Weight(added.astype(np.float32))
            else:
                changed[bias] = Weight((graph.weights[bias].dense() + added).astype(np.float32))
        changed[name] = _take_read(graph, layer, reader, graph.weights[name], units)
    return replace(graph, nodes=tuple(nodes.values()), weights={**graph.weights, **changed})


def _take(weight: Weight, index: Array, axis: int) -> Weight:
    values, encoding = np.take(weight.values, index, axis), weight.encoding
    if isinstance(encoding, Affine) and encoding.axis == axis:
        encoding = replace(encoding, scale=np.take(encoding.scale, index))
    return Weight(values, encoding)


def _take_read(graph: Graph, layer: Layer, reader: Node, weight: Weight, units: Array) -> Weight:
    each = weight.values.shape[1] // layer.units(graph)  # columns a unit: more than one behind a flatten
    columns = (np.asarray(units)[:, None] * each + np.arange(each)).reshape(-1)
    return _take(weight, columns, 1)


# constants


def dead(graph: Graph, layer: Layer) -> tuple[Array, Array]:
    """Return (units whose weights are all zero, units that all products behind them multiply by zero)."""
    rows = graph.weights[layer.weight].dense().reshape(layer.units(graph), -1)
    read = sum((by_unit(graph, layer, reader) != 0).sum(axis=(0, 2)) for reader in layer.readers)
    return np.logical_not(rows.any(axis=1)), np.equal(read, 0)


def constants(graph: Graph, layer: Layer) -> Array:
    """Return the value of each unit as the products behind it see it if its weights were all zero, float64."""
    node, units = layer.node, layer.units(graph)
    weight = graph.weights[layer.weight]
    bias = graph.weights[layer.bias].dense() if layer.bias else None
    shape = weight.values.shape
    image = (1, *shape[1:])  # just as large as the kernel, or a row
    value = node.definition.forward(np.zeros(image, np.float32), np.zeros(shape, np.float32), bias, **node.attributes)
    value = value.reshape(units, -1)[:, 0]
    for step in layer.between:
        value = step.definition.forward(value, **step.attributes)
    return value.astype(np.float64)


def foldable(graph: Graph, layer: Layer) -> Array:
    """Return for which units the constant, if the unit is one, can move into the biases behind it up to rounding.

    A convolution that pads reads zeros, not the constant, beyond the border; a bias of few bits can't take a number to it.
    """
    is_zero, holds = constants(graph, layer) == 0, dead(graph, layer)[0]
    for reader in layer.readers:
        bias = split_name(reader.argument("bias"))[0]
        exact = not bias or _is_float32(graph.weights[bias])
        if (reader.op == "conv2d" and reader.attributes["padding"]) or not exact:
            holds = holds & is_zero
    return holds


def _is_float32(weight: Weight) -> bool:
    return isinstance(weight.encoding, Dense) and weight.values.dtype == np.float32
