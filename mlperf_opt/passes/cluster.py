"""cluster: weights share a few values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import PassError, did_you_mean
from mlperf_opt.graph import Codebook, Dense, Graph, Weight, verify
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.passes.kmeans import Start, kmeans
from mlperf_opt.passes.quant import check_half
from mlperf_opt.settings import require

Array = NDArray[Any]


@dataclass(frozen=True)
class Cluster(Pass):
    """Make the weights of a matrix share a few values, found by k-means (Han et al., arXiv:1510.00149).

    A matrix has at most 2^bits values; one of them is 0, which belongs to the zeros alone and is exact: a small weight does
    not become zero, and what was pruned stays so. The others are the k-means centroids of what isn't zero. A matrix with
    fewer different weights than that keeps each exactly. Arithmetic is float32. `finetune` then trains the shared values.

    Attributes:
        bits: 2 to 8; 5 means 31 centroids and zero.
        layers: bits of some matrices, by the name of the weight or its node: {conv1: 8}; the others have `bits`.
        start: where k-means starts: linear (evenly from the smallest to the largest weight, which serves the few large ones
            best), density (as many weights between two) or random (weights drawn by the seed).
        biases: float32, or fp16: biases and norms are stored in half.
        skip: names of weights (fc2.weight) or nodes (fc2) that stay as they are.
    """

    bits: int = 5
    layers: dict[str, int] | None = None
    start: Start = "linear"
    biases: Literal["float32", "fp16"] = "float32"
    skip: tuple[str, ...] = ()

    effect: ClassVar = "quantizes"
    tolerance: ClassVar = 0.01
    not_after: ClassVar = ("quant", "cluster")

    def __post_init__(self) -> None:
        require(2 <= self.bits <= 8, "bits", self.bits, "2 to 8")
        for name, bits in (self.layers or {}).items():
            require(2 <= bits <= 8, f"layers.{name}", bits, "2 to 8")

    def check(self, graph: Graph) -> None:
        matrices = graph.matrices()
        known = {*matrices, *(reader for name in matrices for reader in graph.readers(name))}
        for setting, names in (("skip", self.skip), ("layers", self.layers or {})):
            for name in names:
                if name not in known:
                    raise PassError(f"cluster: {setting}={name}: no such weight or node{did_you_mean(name, known)}")
        chosen = self._chosen(graph)
        if not chosen:
            raise PassError("cluster: nothing is left to cluster, skip names every matrix")
        for name in chosen:
            weight = graph.weights[name]
            if not isinstance(weight.encoding, Dense) or weight.values.dtype != np.float32:
                raise PassError(f"cluster: {name} is quantized already; put cluster before what quantizes")

    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        rng = np.random.default_rng(context.seed)
        changed: dict[str, Weight] = {}
        facts: dict[str, Any] = {}
        notes: list[str] = []
        for name, bits in self._chosen(graph).items():
            weight, facts[name] = share(graph.weights[name], 2**bits - 1, self.start, rng)
            changed[name] = weight
            count = facts[name]["centroids"]
            if facts[name]["exact"] and count < 2**bits - 1:
                notes.append(f"{name}: {count} different weights need no {2**bits - 1} clusters, each keeps its value")
        if self.biases == "fp16":
            rest = {name: weight for name, weight in graph.parameters().items() if name not in graph.matrices()}
            check_half("cluster", rest)
            changed |= {name: Weight(weight.dense().astype(np.float16)) for name, weight in rest.items()}
        return PassResult(verify(graph.with_weights(changed)), {"clusters": facts}, notes=tuple(notes))

    def _chosen(self, graph: Graph) -> dict[str, int]:
        """Bits of each matrix that isn't skipped."""
        found, layers = {}, self.layers or {}
        for name in graph.matrices():
            names = (name, *graph.readers(name))
            if set(self.skip).isdisjoint(names):
                found[name] = next((layers[known] for known in names if known in layers), self.bits)
        return found


def share(weight: Weight, clusters: int, start: Start, rng: np.random.Generator) -> tuple[Weight, dict[str, Any]]:
    """Return ``weight`` as a codebook of 0 and at most ``clusters`` other values, and the facts about it.

    Args:
        weight: real values of any shape.
        clusters: at least 1.
        start: see `Cluster`.
        rng: for start=random.
    """
    dense = weight.dense()
    where = dense != 0
    values = dense[where]
    shared = kmeans(values, clusters, start, rng) if values.size else np.zeros(0, np.float32)
    codes = np.zeros(dense.shape, np.uint8)
    codes[where] = Codebook(shared).nearest(values) + 1
    # It puts them in order. A mean that happens to be exactly 0 joins the zeros: there can't be two of one value.
    clustered = Weight(codes, Codebook(np.zeros(1, np.float32))).with_centroids(np.concatenate([[0], shared]))
    error = float(np.square(dense - clustered.dense(), dtype=np.float64).sum())
    facts = {"centroids": len(shared), "exact": error == 0, "mean_squared_error": error / max(1, values.size)}
    return clustered, facts
