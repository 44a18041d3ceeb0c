"""The training loop: epochs over a split, with a projection, L1, clipping, schedule, and exact resume."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.data import Dataset, Loader
from mlperf_opt.errors import ConfigError
from mlperf_opt.graph import Graph, Weight, graph_hash
from mlperf_opt.settings import require
from mlperf_opt.training.autodiff import arguments, gradients
from mlperf_opt.training.checkpoint import Keeper, TrainState, load_checkpoint
from mlperf_opt.training.dropout import check_dropout, droppable, factors
from mlperf_opt.training.masters import gradient_of, master_of, real_values, stored
from mlperf_opt.training.objective import CROSS_ENTROPY, Objective
from mlperf_opt.training.optimizers import SGD, Adam, Optimizer, clip_by_global_norm
from mlperf_opt.training.projection import Arrays, Free, Projection
from mlperf_opt.training.reports import EpochReport, StepReport
from mlperf_opt.training.schedules import cosine

Array = NDArray[Any]


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.

    Attributes:
        epochs: passes over the training split; between them lie reports and validation.
        steps: steps an epoch instead of a pass, for a long text; 0 for a pass.
        batch: samples a step.
        accumulate: parts in which a batch is computed, to save memory or to use threads; their gradients are summed.
        lr: peak learning rate.
        warmup: share of all steps in which the rate rises, 0..1.
        stable: share of all steps in which it then stays at its peak, before half a cosine takes it down.
        floor: share of the peak at which the cosine ends.
        optimizer: sgd (momentum 0.9), adam or adamw.
        weight_decay: L2 (sgd, adam) or decoupled (adamw).
        l1: penalty on the magnitude of each matrix entry (not on biases and norms): small weights become
            zeros, so that pruning takes little away.
        clip: limit of the gradients' global L2 norm; 0 for none.
        dropout: share of the numbers that are zeroed in each branch of a residual network, 0 to less than 1.
        shift: images only: random shifts by up to this many pixels.
    """

    epochs: int = 50
    steps: int = 0
    batch: int = 32
    accumulate: int = 1
    lr: float = 0.003
    warmup: float = 0.05
    stable: float = 0.0
    floor: float = 0.0
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    l1: float = 0.0
    clip: float = 0.0
    dropout: float = 0.0
    shift: int = 0

    def __post_init__(self) -> None:
        require(self.epochs >= 0, "epochs", self.epochs, "a whole number >= 0")
        require(self.steps >= 0, "steps", self.steps, "a whole number >= 0")
        require(self.batch >= 1, "batch", self.batch, "a whole number >= 1")
        require(1 <= self.accumulate <= self.batch, "accumulate", self.accumulate, f"1 to batch={self.batch}")
        require(0 < self.lr < float("inf"), "lr", self.lr, "a number > 0")
        for name in ("warmup", "stable", "floor"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("weight_decay", "l1", "clip"):
            require(0 <= getattr(self, name) < float("inf"), name, getattr(self, name), "a number >= 0")
        require(0 <= self.dropout <= 0.99, "dropout", self.dropout, "0 to 0.99")
        require(self.shift >= 0, "shift", self.shift, "a whole number >= 0")

    def make_optimizer(self) -> Optimizer:
        """Return the optimizer that the settings name."""
        if self.optimizer == "sgd":
            return SGD(weight_decay=self.weight_decay)
        return Adam(weight_decay=self.weight_decay, decoupled=self.optimizer == "adamw")


@dataclass(frozen=True)
class TrainResult:
    """What training leaves.

    Attributes:
        graph: the trained network, projected.
        history: the mean training loss of each epoch.
        rows: what was observed after each epoch, also before a resume; empty where nothing was to be observed.
        shadow: the float32 weights behind the projection; of a codebook its centroids, in the order of its codes.
        memory: what the projection knew at the end.
    """

    graph: Graph
    history: tuple[float, ...]
    rows: tuple[dict[str, Any], ...]
    shadow: Mapping[str, Array]
    memory: Mapping[str, Array]


def check_trainable(graph: Graph, settings: TrainSettings) -> None:
    """Raise `ConfigError` for settings that ``graph`` can't be trained with: dropout or shifts where nothing takes them."""
    check_dropout(graph, settings.dropout)
    (name, spec), *_ = graph.inputs.items()
    if settings.shift and len(spec.shape) != 4:
        raise ConfigError(f"shift={settings.shift}: only images can be shifted, and {graph.name} takes {name}: {spec}")


def train(
    graph: Graph,
    data: Dataset,
    settings: TrainSettings,
    *,
    seed: int,
    projection: Projection | None = None,
    objective: Objective = CROSS_ENTROPY,
    observe: Callable[[EpochReport], dict[str, Any]] | None = None,
    progress: Callable[[EpochReport], None] | None = None,
    stepped: Callable[[StepReport], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
    threads: int = 1,
) -> TrainResult:
    """Fit the graph's parameters to the training split. Quantized and float16 weights stay on their grid.

    Args:
        graph: without state.
        data: its training split is used, and nothing else of it.
        settings: how.
        seed: of the order of samples and the augmentation.
        projection: what the forward pass uses of the weights; None for all of them as they are.
        objective: the loss.
        observe: called after each epoch for a row of plain data (as of JSON), which the checkpoint and the result hold.
        progress: called after each epoch.
        stepped: called after each step.
        checkpoint: written between steps, at the end, and on Ctrl-C, which waits for the end of its step; where the file
            exists, training goes on from it to the same result.
        checkpoint_seconds: time from one checkpoint to the next at the least.
        threads: for the parts of a batch (``accumulate``); the result doesn't depend on it.

    Raises:
        ConfigError: see `check_trainable`.
        ArtifactError: the checkpoint is damaged or of another training.
        GraphError: the graph can't be differentiated.
        KeyboardInterrupt: Ctrl-C; what was done until then is in the checkpoint.
    """
    check_trainable(graph, settings)
    loader = Loader(data.train, settings.batch, seed, settings.shift, settings.steps)
    run = _Training(graph, settings, projection or Free(), objective, loader, threads)
    state = run.initial_state(f"{graph_hash(graph)} {data.sha256} {settings} {seed}")
    if checkpoint is not None and checkpoint.exists():
        state = load_checkpoint(checkpoint, state)
    with Keeper(checkpoint, checkpoint_seconds, state) as keeper, ThreadPoolExecutor(threads) as pool:
        while state.epoch < settings.epochs:
            started = time.perf_counter()
            # batches that were trained on before an interruption are drawn again, so that the draws behind them are the same
            for inputs, targets in islice(loader.epoch(state.epoch), state.step - state.epoch * len(loader), None):
                with keeper.changing():
                    run.step(state, inputs, targets, pool)
                if stepped is not None:
                    stepped(StepReport(state.step, run.steps, state.loss_sum / run.seen(state)))
                keeper.keep()
            loss, report, row = state.loss_sum / loader.samples, None, None
            if observe is not None or progress is not None:
                numbers = (loss, state.hits / state.counted, time.perf_counter() - started)
                report = EpochReport(state.epoch + 1, settings.epochs, *numbers, run.result(state))
            if observe is not None and report is not None:
                row = observe(report)
                report = replace(report, row=row)
            with keeper.changing():
                state.end_epoch(loss, row)
            keeper.keep(last=state.epoch == settings.epochs)
            if progress is not None and report is not None:
                progress(report)
    return TrainResult(run.result(state), tuple(state.history), tuple(state.rows), state.weights, state.memory)


@dataclass(frozen=True)
class _Training:
    """What stays the same from step to step."""

    graph: Graph
    settings: TrainSettings
    projection: Projection
    objective: Objective
    loader: Loader
    threads: int

    @cached_property
    def droppable(self) -> dict[str, int]:
        return droppable(self.graph)

    @cached_property
    def parameters(self) -> dict[str, Weight]:
        return self.graph.parameters()

    @cached_property
    def penalised(self) -> list[str]:
        return list(self.graph.matrices()) if self.settings.l1 else []

    @cached_property
    def optimizer(self) -> Optimizer:
        return self.settings.make_optimizer()

    @cached_property
    def steps(self) -> int:
        """Steps of all epochs."""
        return len(self.loader) * self.settings.epochs

    def seen(self, state: TrainState) -> int:
        """Return how many samples of the epoch were trained on: all batches but the last of a pass are whole."""
        return min((state.step - state.epoch * len(self.loader)) * self.settings.batch, self.loader.samples)

    def initial_state(self, identity: str) -> TrainState:
        weights = {name: master_of(weight) for name, weight in self.parameters.items()}
        slots = {name: self.optimizer.init(weight) for name, weight in weights.items()}
        whole = f"{identity} {self.projection.identity} {self.objective.identity}"
        return TrainState(weights, slots, 0, 0, [], [], hashlib.sha256(whole.encode()).hexdigest())

    def result(self, state: TrainState) -> Graph:
        """Return the graph with the projected weights, in the encodings that it has."""
        used = state.weights | self.projection.project(state.weights, state.memory) if state.step else state.weights
        return self.graph.with_weights({name: stored(self.graph.weights[name], array) for name, array in used.items()})

    def step(self, state: TrainState, inputs: Array, targets: Array, pool: ThreadPoolExecutor) -> None:
        """Run one step in place on ``state``, which is not whole until it returns."""
        settings, parameters = self.settings, self.parameters
        if state.step == 0 or (self.projection.every and state.step % self.projection.every == 0):
            state.memory = self.projection.refresh(state.weights, state.memory, state.step, self.steps)
        used = state.weights | self.projection.project(state.weights, state.memory)
        loss, right, grads = self._gradients(arguments(self.graph, used), inputs, targets, state.step, pool)
        for name in self.penalised:
            grads[name] += settings.l1 * np.sign(real_values(parameters[name], state.weights[name]))
        grads = {name: gradient_of(parameters[name], gradient) for name, gradient in grads.items()}
        if settings.clip:
            clip_by_global_norm(grads, settings.clip)
        state.step += 1
        warmup, stable = round(settings.warmup * self.steps), round(settings.stable * self.steps)
        lr = cosine(state.step, self.steps, warmup, settings.lr, settings.floor * settings.lr, stable)
        for name, weight in state.weights.items():
            self.optimizer.update(weight, grads[name], state.slots[name], lr, state.step)
        state.hits += right
        state.counted += int((targets >= 0).sum())
        state.loss_sum += loss * len(inputs)

    def _gradients(
        self, weights: Arrays, inputs: Array, targets: Array, step: int, pool: ThreadPoolExecutor
    ) -> tuple[float, int, dict[str, Array]]:
        """Return (loss, targets predicted, gradients) of a batch, summed over its parts in their order.

        The loss of a part is a mean over its targets, so a part counts by their number.
        """
        counts = (targets >= 0).reshape(len(targets), -1).sum(axis=1)
        whole = np.arange(len(inputs))
        parts = [rows for rows in np.array_split(whole, self.settings.accumulate) if counts[rows].any()] or [whole]

        def run(part: int) -> tuple[float, int, dict[str, Array]]:
            rows = slice(parts[part][0], parts[part][-1] + 1)
            shape, seed = inputs[rows].shape, (self.loader.seed, step, part)
            dropped = factors(self.droppable, shape, self.settings.dropout, seed)
            feeds = (self.graph, weights, (inputs[rows],), targets[rows], self.objective, dropped)
            loss, logits, grads = gradients(*feeds)
            return loss, int((logits.argmax(axis=-1) == targets[rows])[targets[rows] >= 0].sum()), grads

        if len(parts) == 1:
            return run(0)
        loss, hits, total = 0.0, 0, {}
        for part, (one, right, grads) in enumerate(pool.map(run, range(len(parts)))):
            share = counts[parts[part]].sum() / counts.sum()
            loss, hits = loss + share * one, hits + right
            for name, grad in grads.items():
                part_of_total = grad * grad.dtype.type(share)
                total[name] = total[name] + part_of_total if name in total else part_of_total
        return float(loss), hits, total
