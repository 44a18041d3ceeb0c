"""finetune: train on, with zeros kept zero and codes kept on their grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mlperf_opt.errors import PassError
from mlperf_opt.graph import Graph
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.training import EpochReport, TrainSettings, train


@dataclass(frozen=True)
class Finetune(Pass):
    """Train on after another pass, on the training split.

    Weights that are zero stay zero. On a quantized graph the forward pass computes with the codes that the file will hold
    and the gradient goes straight through to a float32 master copy (Bengio, arXiv:1308.3432); scales and ranges stay as
    calibrated.

    Attributes:
        epochs: passes over the training split.
        lr: peak learning rate, cosine to 0.
        l1: penalty on the magnitude of matrix entries.
        batch: samples a step.
        optimizer: sgd, adam or adamw.
    """

    epochs: int = 20
    lr: float = 0.002
    l1: float = 0.0
    batch: int = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"

    effect: ClassVar = "retrains"
    tolerance: ClassVar = 0.01
    not_after: ClassVar = ("kv_cache",)

    def __post_init__(self) -> None:
        self._settings()

    def check(self, graph: Graph) -> None:
        if graph.state:
            raise PassError("finetune: a graph with a cache can't be trained; put finetune before kv_cache")

    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        masks = {name: ~graph.weights[name].is_zero for name in graph.matrices()}

        def report(epoch: EpochReport) -> None:
            context.progress(f"epoch {epoch.epoch}/{epoch.epochs} loss {epoch.loss:.4f} train {epoch.accuracy:.1%}")

        result = train(graph, context.data, self._settings(), seed=context.seed, masks=masks, progress=report)
        return PassResult(result.graph, {"loss": list(result.history)})

    def _settings(self) -> TrainSettings:
        return TrainSettings(self.epochs, self.batch, self.lr, optimizer=self.optimizer, l1=self.l1)
