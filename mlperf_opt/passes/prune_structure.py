"""Pruning by structure: units that are removed, so that the graph shrinks, and the n:m pattern."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mlperf_opt.errors import PassError
from mlperf_opt.graph import Graph, Weight
from mlperf_opt.passes.units import Layer, layers, scores, select

Structure = Literal["neuron", "channel"]
_OPS = {"neuron": "linear", "channel": "conv2d"}


def _chosen(graph: Graph, structure: Structure, skip: tuple[str, ...]) -> list[Layer]:
    found = [layer for layer in layers(graph) if layer.node.op == _OPS[structure]]
    return [layer for layer in found if layer.node.output not in skip and layer.weight not in skip]


def check_units(graph: Graph, structure: Structure, keep: tuple[int, ...], skip: tuple[str, ...]) -> None:
    """Raise `PassError` unless the graph has such layers, and as many and as large ones as ``keep`` says."""
    chosen = _chosen(graph, structure, skip)
    if not chosen:
        why = "; the last layer's outputs are the classes" if any(n.op in _OPS.values() for n in graph.nodes) else ""
        why = why or "; put it before quant, whose products keep their units"
        raise PassError(f"prune: {graph.name} has no layer whose {structure}s could be removed{why}")
    if not keep:
        return
    names = ", ".join(layer.node.output for layer in chosen)
    if len(keep) != len(chosen):
        raise PassError(f"prune: keep={list(keep)}: expected a number for each of {names}")
    for count, layer in zip(keep, chosen, strict=True):
        if count > layer.units(graph):
            raise PassError(f"prune: keep={list(keep)}: {layer.node.output} has {layer.units(graph)} {structure}s")


def narrow(
    graph: Graph, structure: Structure, keep: tuple[int, ...], sparsity: float, skip: tuple[str, ...]
) -> tuple[Graph, dict[str, int]]:
    """Return the graph without the units of the smallest ||w_in|| * ||w_out||, and how many of each layer went.

    At least one unit of a layer stays. All scores are those of the network as it is given, so that the order of the layers
    makes no difference.
    """
    chosen = _chosen(graph, structure, skip)
    plan = {}
    for place, layer in enumerate(chosen):
        units = layer.units(graph)
        count = keep[place] if keep else max(1, units - round(sparsity * units))
        best = np.argsort(-scores(graph, layer), kind="stable")[:count]
        plan[layer.node.output] = np.sort(best)
    removed = {layer.node.output: layer.units(graph) - len(plan[layer.node.output]) for layer in chosen}
    for name, units in plan.items():
        layer = next(layer for layer in layers(graph) if layer.node.output == name)
        if len(units) < layer.units(graph):
            graph = select(graph, layer, units)
    return graph, removed


def check_pattern(graph: Graph, names: list[str], m: int) -> None:
    """Raise `PassError` for a matrix whose rows don't divide into groups of m."""
    for name in names:
        values = graph.weights[name].values
        columns = values.size // len(values)
        if columns % m:
            raise PassError(f"prune: {name} has {columns} inputs, which m={m} does not divide; skip it or choose another m")


def keep_pattern(weight: Weight, n: int, m: int) -> Weight:
    """Return the weight with the n largest magnitudes of every m in a row (Mishra et al., arXiv:2104.08378).

    Rows are those of the product, (M, C kh kw) of a convolution; of equal magnitudes the last stay.
    """
    magnitudes = np.abs(weight.dense()).reshape(-1, m)
    smallest = np.argsort(magnitudes, axis=1, kind="stable")[:, : m - n]
    mask = np.ones(magnitudes.shape, bool)
    np.put_along_axis(mask, smallest, values=False, axis=1)
    return Weight(
        np.where(mask.reshape(weight.values.shape), weight.values, weight.values.dtype.type(weight.zero)), weight.encoding
    )
