"""tidy: units that do nothing go, the others stand in an order that codes well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlperf_opt.errors import PassError
from mlperf_opt.graph import Graph, verify
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.passes.units import dead, foldable, layers, select


@dataclass(frozen=True)
class Tidy(Pass):
    """Remove dead neurons and filters, and sort the others by how many weights they have. Outputs stay equal up to rounding.

    A unit is dead if nothing behind it reads it, or if all its weights are zero: then it is a constant, which moves into the
    biases behind it. Where that isn't exact (a bias of few bits, a convolution that pads) the unit stays. At least one unit
    of a layer stays, and the classes always do.

    Attributes:
        sort: units with the most nonzero weights first: the places of zeros are then easier to code.
    """

    sort: bool = True

    effect: ClassVar = "keeps_weights"
    tolerance: ClassVar = 0.0

    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        before = {layer.node.output: layer.units(graph) for layer in layers(graph)}
        graph = self._sorted(drop_dead(graph))
        after = {layer.node.output: layer.units(graph) for layer in layers(graph)}
        if after.keys() != before.keys():
            raise PassError(f"tidy: the layers {sorted(before)} became {sorted(after)}")
        return PassResult(verify(graph), {"removed": {name: before[name] - after[name] for name in before}})

    def _sorted(self, graph: Graph) -> Graph:
        names = [layer.node.output for layer in layers(graph)] if self.sort else []
        for name in names:
            layer = next(layer for layer in layers(graph) if layer.node.output == name)
            zeros = graph.weights[layer.weight].is_zero.reshape(layer.units(graph), -1)
            graph = select(graph, layer, np.argsort(zeros.sum(axis=1), kind="stable"))
        return graph


def drop_dead(graph: Graph) -> Graph:
    """Return the graph without its dead units: removing one may make others dead, so it goes on until none is left."""
    again = True
    while again:
        again = False
        for name in [layer.node.output for layer in layers(graph)]:
            layer = next(layer for layer in layers(graph) if layer.node.output == name)
            _, unread = dead(graph, layer)
            alive = np.flatnonzero(~(unread | foldable(graph, layer)))
            if len(alive) < layer.units(graph) > 1:
                graph = select(graph, layer, alive if len(alive) else np.array([0]))
                again = True
    return graph
