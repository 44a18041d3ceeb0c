"""lowrank: a linear layer as two thinner ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import PassError, did_you_mean
from mlperf_opt.graph import Dense, Graph, Node, Weight, split_name, verify
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.settings import require

Array = NDArray[Any]


@dataclass(frozen=True)
class Lowrank(Pass):
    """Replace a linear layer (M, K) by two of rank r, (r, K) and (M, r), from its truncated singular value decomposition.

    That is the best approximation of its rank (Eckart and Young, 1936; for networks Denton et al., arXiv:1404.0736). It pays
    where r (M + K) < M K: other layers stay as they are if the rank is chosen by energy, and are refused if it is given.

    Attributes:
        energy: share of the squared singular values that stays, more than 0 to 1; it chooses the rank of each layer.
        rank: the rank of every layer that isn't skipped; 0 to go by energy.
        skip: names of nodes that stay as they are.
    """

    energy: float = 0.9
    rank: int = 0
    skip: tuple[str, ...] = ()

    effect: ClassVar = "discards_weights"
    tolerance: ClassVar = 0.03
    not_after: ClassVar = ("quant", "cluster", "lowrank")

    def __post_init__(self) -> None:
        require(0 < self.energy <= 1, "energy", self.energy, "more than 0, at most 1")
        require(self.rank >= 0, "rank", self.rank, "a whole number >= 0")

    def check(self, graph: Graph) -> None:
        known = [node.output for node in graph.nodes if node.op == "linear"]
        for name in self.skip:
            if name not in known:
                raise PassError(f"lowrank: skip={name}: no such linear node{did_you_mean(name, known)}")
        candidates = self._candidates(graph)
        if not candidates:
            raise PassError(f"lowrank: {graph.name} has no linear layer of float32 weights of its own")
        for node in candidates if self.rank else ():
            m, k = graph.weights[_weight(node)].values.shape
            if self.rank * (m + k) >= m * k:
                raise PassError(
                    f"lowrank: {node.output} ({m} x {k}) has {m * k:,} weights, at rank={self.rank} its factors have"
                    f" {self.rank * (m + k):,}: skip it, or choose a lower rank"
                )
        if not any(self._factors(graph, node) for node in candidates):
            raise PassError(f"lowrank: at energy={self.energy} no layer of {graph.name} has factors smaller than itself")

    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        weights, nodes, ranks = dict(graph.weights), [], {}
        factors = {node.output: self._factors(graph, node) for node in self._candidates(graph)}
        for node in graph.nodes:
            pair = factors.get(node.output)
            if pair is None:
                nodes.append(node)
                continue
            left, right = pair
            inner = f"{node.output}.low"
            weights[_weight(node)], weights[f"{inner}.weight"] = Weight(left), Weight(right)
            nodes += [
                Node("linear", (node.argument("x"), f"{inner}.weight", ""), inner),
                replace(node, inputs=(inner, *node.inputs[1:])),
            ]
            ranks[node.output] = len(right)
        return PassResult(verify(replace(graph, nodes=tuple(nodes), weights=weights)), {"ranks": ranks})

    def _candidates(self, graph: Graph) -> list[Node]:
        found = []
        for node in graph.nodes:
            if node.op != "linear" or node.output in self.skip or _weight(node) not in graph.weights:
                continue
            weight = graph.weights[_weight(node)]
            is_float = isinstance(weight.encoding, Dense) and weight.values.dtype == np.float32
            if is_float and len(graph.consumers(_weight(node))) == 1:
                found.append(node)
        return found

    def _factors(self, graph: Graph, node: Node) -> tuple[Array, Array] | None:
        """Return (M, r) and (r, K) whose product is the layer's best approximation; None where they aren't smaller."""
        dense = graph.weights[_weight(node)].dense().astype(np.float64)
        u, s, v = np.linalg.svd(dense, full_matrices=False)
        share = np.cumsum(s**2) / max(float((s**2).sum()), np.finfo(np.float64).tiny)
        needed = int(np.searchsorted(share, self.energy * (1 - 1e-12))) + 1 if s.any() else 1
        rank = self.rank or min(needed, len(s))
        if rank * sum(dense.shape) >= dense.size:
            return None
        # the root of the singular values on both sides: factors of like size quantize alike
        root = np.sqrt(s[:rank])
        return (u[:, :rank] * root).astype(np.float32), (root[:, None] * v[:rank]).astype(np.float32)


def _weight(node: Node) -> str:
    return split_name(node.argument("weight"))[0]
