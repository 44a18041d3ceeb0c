"""The training loop: epochs over a split, with masks, L1, clipping, schedule, and exact resume."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.data import Dataset, Loader
from mlperf_opt.graph import Graph, graph_hash
from mlperf_opt.settings import require
from mlperf_opt.training.autodiff import arguments, gradients
from mlperf_opt.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from mlperf_opt.training.optimizers import SGD, Adam, Optimizer, clip_by_global_norm
from mlperf_opt.training.schedules import cosine

Array = NDArray[Any]


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.

    Attributes:
        epochs: passes over the training split.
        batch: samples a step.
        lr: peak learning rate, cosine to 0.
        warmup: share of all steps in which the rate rises, 0..1.
        optimizer: sgd (momentum 0.9), adam or adamw.
        weight_decay: L2 (sgd, adam) or decoupled (adamw).
        l1: penalty on the magnitude of each matrix entry (not on biases and norms): small weights become
            zeros, so that pruning takes little away.
        clip: limit of the gradients' global L2 norm; 0 for none.
        shift: images only: random shifts by up to this many pixels.
    """

    epochs: int = 50
    batch: int = 32
    lr: float = 0.003
    warmup: float = 0.05
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    l1: float = 0.0
    clip: float = 0.0
    shift: int = 0

    def __post_init__(self) -> None:
        require(self.epochs >= 0, "epochs", self.epochs, "a whole number >= 0")
        require(self.batch >= 1, "batch", self.batch, "a whole number >= 1")
        require(0 < self.lr < float("inf"), "lr", self.lr, "a number > 0")
        require(0 <= self.warmup <= 1, "warmup", self.warmup, "0 to 1")
        for name in ("weight_decay", "l1", "clip"):
            require(0 <= getattr(self, name) < float("inf"), name, getattr(self, name), "a number >= 0")
        require(self.shift >= 0, "shift", self.shift, "a whole number >= 0")

    def make_optimizer(self) -> Optimizer:
        """Return the optimizer that the settings name."""
        if self.optimizer == "sgd":
            return SGD(weight_decay=self.weight_decay)
        return Adam(weight_decay=self.weight_decay, decoupled=self.optimizer == "adamw")


@dataclass(frozen=True)
class EpochReport:
    """What is known after an epoch: number, of how many, mean loss, share of targets predicted, seconds it took."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """The trained graph and the mean training loss of each epoch."""

    graph: Graph
    history: tuple[float, ...]


def train(
    graph: Graph,
    data: Dataset,
    settings: TrainSettings,
    *,
    seed: int,
    masks: Mapping[str, Array] | None = None,
    progress: Callable[[EpochReport], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 0.0,
) -> TrainResult:
    """Fit the graph's parameters to the training split. Quantized and float16 weights stay on their grid.

    Args:
        graph: without state.
        data: its training split is used, and nothing else of it.
        settings: how.
        seed: of the order of samples and the augmentation.
        masks: weight name -> bool array; entries that are False stay zero.
        progress: called after each epoch.
        checkpoint: written between epochs; where the file exists, training goes on from it to the same result.
        checkpoint_seconds: time from one checkpoint to the next at the least.

    Raises:
        ArtifactError: the checkpoint is damaged or of another training.
        GraphError: the graph can't be differentiated.
    """
    masks = masks or {}
    optimizer = settings.make_optimizer()
    state = _initial_state(graph, data, settings, seed, optimizer, masks)
    if checkpoint is not None and checkpoint.exists():
        state = load_checkpoint(checkpoint, state)
    loader = Loader(data.train, settings.batch, seed, settings.shift)
    saved = time.perf_counter()
    for epoch in range(state.epoch, settings.epochs):
        started = time.perf_counter()
        loss, accuracy = _epoch(graph, loader, settings, optimizer, state, masks)
        state.epoch = epoch + 1
        state.history.append(loss)
        if checkpoint is not None and time.perf_counter() - saved >= checkpoint_seconds:
            save_checkpoint(checkpoint, state)
            saved = time.perf_counter()
        if progress is not None:
            progress(EpochReport(epoch + 1, settings.epochs, loss, accuracy, time.perf_counter() - started))
    trained = {name: graph.weights[name].encode(master) for name, master in state.weights.items()}
    return TrainResult(graph.with_weights(trained), tuple(state.history))


def _initial_state(
    graph: Graph, data: Dataset, settings: TrainSettings, seed: int, optimizer: Optimizer, masks: Mapping[str, Array]
) -> TrainState:
    weights = {name: np.array(weight.dense()) for name, weight in graph.parameters().items()}
    slots = {name: optimizer.init(weight) for name, weight in weights.items()}
    identity = hashlib.sha256(f"{graph_hash(graph)} {data.sha256} {settings} {seed}".encode())
    for name, mask in sorted(masks.items()):
        identity.update(f"{name} {mask.shape}".encode() + mask.tobytes())
    return TrainState(weights, slots, epoch=0, step=0, history=[], identity=identity.hexdigest())


def _epoch(
    graph: Graph,
    loader: Loader,
    settings: TrainSettings,
    optimizer: Optimizer,
    state: TrainState,
    masks: Mapping[str, Array],
) -> tuple[float, float]:
    """Run one epoch in place on ``state``; return (mean loss, share of the counting targets predicted)."""
    total = len(loader) * settings.epochs
    warmup = round(settings.warmup * total)
    matrices = graph.matrices() if settings.l1 else {}
    loss_sum = hits = counted = 0.0
    for inputs, targets in loader.epoch(state.epoch):
        loss, logits, grads = gradients(graph, arguments(graph, state.weights), (inputs,), targets)
        for name in matrices:
            grads[name] += settings.l1 * np.sign(state.weights[name])
        if settings.clip:
            clip_by_global_norm(grads, settings.clip)
        state.step += 1
        lr = cosine(state.step, total, warmup, settings.lr)
        for name, weight in state.weights.items():
            optimizer.update(weight, grads[name], state.slots[name], lr, state.step)
            if name in masks:
                weight[~masks[name]] = 0  # not a product: -1 * 0 is -0.0, which a file would have to keep
        valid = targets >= 0
        hits += float((logits.argmax(axis=-1) == targets)[valid].sum())
        counted += float(valid.sum())
        loss_sum += loss * len(inputs)
    return loss_sum / len(loader.split), hits / counted
