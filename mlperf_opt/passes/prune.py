"""prune: set the smallest weights to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import PassError, did_you_mean
from mlperf_opt.graph import Graph, Weight
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.settings import require

Array = NDArray[Any]


@dataclass(frozen=True)
class Prune(Pass):
    """Set the smallest weights to zero (magnitude pruning; Han et al., arXiv:1506.02626).

    Only matrices are pruned (linear, conv2d, embedding), never biases and norms. The number of zeros is exactly
    round(sparsity * weights), or what was zero before where that is more; of equal magnitudes the first go first. Codes of a
    quantized graph are pruned by the real values that they stand for.

    Attributes:
        sparsity: share of zeros, 0 to less than 1.
        scope: global (the smallest of the whole network) or layer (the same share of each matrix).
        skip: names of weights (fc2.weight) or nodes (fc2) that stay as they are.
    """

    sparsity: float = 0.5
    scope: Literal["global", "layer"] = "global"
    skip: tuple[str, ...] = ()

    effect: ClassVar = "discards_weights"
    tolerance: ClassVar = 0.03

    def __post_init__(self) -> None:
        require(0 <= self.sparsity < 1, "sparsity", self.sparsity, "0 to less than 1")

    def check(self, graph: Graph) -> None:
        names = graph.matrices()
        known = {*names, *(node.output for node in names.values())}
        for name in self.skip:
            if name not in known:
                raise PassError(f"prune: skip={name}: no such weight or node{did_you_mean(name, known)}")
        if not self._chosen(graph):
            raise PassError("prune: nothing is left to prune, skip names every matrix")

    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        chosen = self._chosen(graph)
        groups = [chosen] if self.scope == "global" else [[name] for name in chosen]
        pruned: dict[str, Weight] = {}
        for group in groups:
            result = _prune_group({name: graph.weights[name] for name in group}, self.sparsity)
            _check_zeros(result, self.sparsity)
            pruned |= result
        zeros = {name: int(w.is_zero.sum()) for name, w in pruned.items()}
        return PassResult(graph.with_weights(pruned), {"zeros": zeros})

    def _chosen(self, graph: Graph) -> list[str]:
        return [n for n, node in graph.matrices().items() if n not in self.skip and node.output not in self.skip]


def _check_zeros(weights: dict[str, Weight], sparsity: float) -> None:
    """The promise of the pass, counted on what it made."""
    zeros = sum(int(w.is_zero.sum()) for w in weights.values())
    wanted = round(sparsity * sum(w.values.size for w in weights.values()))
    if zeros < wanted:
        raise PassError(f"prune: {zeros} zeros instead of {wanted} in {', '.join(weights)}")


def _prune_group(weights: dict[str, Weight], sparsity: float) -> dict[str, Weight]:
    """Zero the smallest magnitudes of several weights together; those already zero count first."""
    magnitudes = np.concatenate([np.abs(w.dense()).reshape(-1) for w in weights.values()])
    keep = np.ones(len(magnitudes), bool)
    keep[np.argsort(magnitudes, kind="stable")[: round(sparsity * len(magnitudes))]] = False
    pruned, start = {}, 0
    for name, weight in weights.items():
        size = weight.values.size
        mask = keep[start : start + size].reshape(weight.values.shape)
        pruned[name] = Weight(np.where(mask, weight.values, weight.values.dtype.type(weight.zero)), weight.encoding)
        start += size
    return pruned
