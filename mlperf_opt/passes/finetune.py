"""finetune: train on, with zeros kept zero and codes kept on their grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import PassError
from mlperf_opt.graph import Codebook, Graph, graph_hash
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.passes.watching import check_settings, observed, shown
from mlperf_opt.runtimes import NUMPY
from mlperf_opt.settings import require
from mlperf_opt.training import CROSS_ENTROPY, Distillation, Frozen, Objective, TrainSettings, train

Array = NDArray[Any]


@dataclass(frozen=True)
class Finetune(Pass):
    """Train on after another pass, on the training split.

    Weights that are zero stay zero. On a quantized graph the forward pass computes with the codes that the file will hold
    and the gradient goes straight through to a float32 master copy (Bengio, arXiv:1308.3432); scales and ranges stay as
    calibrated. Of weights that share centroids (`cluster`) the centroids are trained: each place keeps its centroid, whose
    gradient is the sum over its places (Han et al., arXiv:1510.00149). With distillation the network learns the baseline's
    soft targets too (Hinton et al., arXiv:1503.02531).

    Attributes:
        epochs: passes over the training split.
        lr: peak learning rate, cosine to 0.
        warmup: share of the steps in which the rate rises, 0 to 1.
        l1: penalty on the magnitude of matrix entries.
        batch: samples a step.
        optimizer: sgd, adam or adamw.
        shift: images only: random shifts by up to this many pixels.
        distill: share of the loss that is against the baseline's soft targets, 0 to 1.
        temperature: by which the logits are divided for the soft targets.
    """

    epochs: int = 20
    lr: float = 0.002
    warmup: float = 0.05
    l1: float = 0.0
    batch: int = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    shift: int = 0
    distill: float = 0.0
    temperature: float = 3.0

    effect: ClassVar = "retrains"
    tolerance: ClassVar = 0.01
    not_after: ClassVar = ("kv_cache",)

    def __post_init__(self) -> None:
        require(0 <= self.distill <= 1, "distill", self.distill, "0 to 1")
        require(0 < self.temperature < float("inf"), "temperature", self.temperature, "a number > 0")
        self._settings()

    def check(self, graph: Graph) -> None:
        if graph.state:
            raise PassError("finetune: a graph with a cache can't be trained; put finetune before kv_cache")
        check_settings("finetune", graph, self._settings())

    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        result = train(
            graph,
            context.data,
            self._settings(),
            seed=context.seed,
            projection=Frozen(_masks(graph)),
            objective=self._objective(context),
            observe=observed(context.data),
            progress=shown(context.progress),
            checkpoint=context.checkpoint,
        )
        _check_zeros(graph, result.graph)
        if self.epochs:
            _check_moved(graph, result.graph)
        return PassResult(result.graph, {"loss": list(result.history)}, {"epochs": list(result.rows)} if result.rows else {})

    def _objective(self, context: PassContext) -> Objective:
        if not self.distill:
            return CROSS_ENTROPY
        if context.baseline is None:
            raise PassError("finetune: distill needs a baseline to learn from")
        identity = f"{graph_hash(context.baseline)} {self.distill} {self.temperature}"
        return Distillation(NUMPY.prepare(context.baseline), self.distill, self.temperature, identity)

    def _settings(self) -> TrainSettings:
        return TrainSettings(
            epochs=self.epochs,
            batch=self.batch,
            lr=self.lr,
            warmup=self.warmup,
            optimizer=self.optimizer,
            l1=self.l1,
            shift=self.shift,
        )


def _check_moved(before: Graph, after: Graph) -> None:
    """Training that leaves every shared value where it was has not trained them."""
    shared = [name for name, weight in before.parameters().items() if isinstance(weight.encoding, Codebook)]
    could = any(not before.weights[name].is_zero.all() for name in shared)
    if could and all(np.array_equal(before.weights[name].dense(), after.weights[name].dense()) for name in shared):
        raise PassError("finetune: no shared value has moved; is lr too small for float32?")


def _masks(graph: Graph) -> dict[str, Array]:
    """Where each matrix isn't zero. A codebook needs no mask: its zeros are a centroid of their own, which doesn't move."""
    weights = {name: graph.weights[name] for name in graph.matrices()}
    return {name: ~weight.is_zero for name, weight in weights.items() if not isinstance(weight.encoding, Codebook)}


def _check_zeros(before: Graph, after: Graph) -> None:
    """The promise of the pass, counted on what it made."""
    for name in before.matrices():
        lost = int((before.weights[name].is_zero & ~after.weights[name].is_zero).sum())
        if lost:
            raise PassError(f"finetune: {name} has {lost} fewer zeros than it came with")
