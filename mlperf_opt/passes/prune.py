"""prune: fewer weights, or fewer units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import PassError, did_you_mean
from mlperf_opt.graph import Codebook, Dense, Graph, Weight, verify
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.passes.prune_structure import Structure, check_pattern, check_units, keep_pattern, narrow
from mlperf_opt.passes.ramp import Ramp, Schedule, Score, biases, images
from mlperf_opt.passes.watching import check_settings, observed, shown
from mlperf_opt.settings import require
from mlperf_opt.training import TrainSettings, train

Array = NDArray[Any]

_WARMUP = 0.02
_HOLD_FLOOR = 0.3  # of the rate, at the end of the hold: the next training starts from there


@dataclass(frozen=True)
class Prune(Pass):
    """Set the smallest weights to zero (magnitude pruning; Han et al., arXiv:1506.02626), or remove whole units.

    Only matrices are pruned (linear, conv2d, embedding), never biases and norms. The number of zeros is exactly
    round(sparsity * weights), or what was zero before where that is more; of equal magnitudes the first go first. Codes of a
    quantized graph are pruned by the real values that they stand for.

    With a schedule the network is trained meanwhile: the forward pass uses what is kept, the gradient goes straight through
    to all weights, and what is kept is chosen anew every few steps, so that a weight may come back (Guo et al.,
    arXiv:1608.04493).

    Attributes:
        sparsity: share of zeros, 0 to less than 1; of structure=neuron or channel the share of each layer's units.
        scope: global (the smallest of the whole network) or layer (the same share of each matrix).
        skip: names of weights (fc2.weight) or nodes (fc2) that stay as they are.
        structure: weight (single weights become zero), neuron (units of linear layers are removed), channel (filters of
            convolutions are removed), n:m (of m weights in a row n stay). Units go by ||w_in|| * ||w_out||, classes never.
        keep: units that stay in each layer, in the order of the layers; empty takes the share.
        n: of structure=n:m.
        m: of structure=n:m; it must divide the inputs of every matrix that isn't skipped.
        schedule: one_shot, or while training: cubic (Zhu and Gupta, arXiv:1710.01878) or geometric (the same factor in equal
            times).
        score: magnitude, or rate (with a schedule): magnitude for the bits that the weight's place costs in the file.
        regrow: with a schedule: what was pruned may come back.
        step_ratio: with a schedule: from half of the ramp on weights lie on a grid whose step is this times the mean
            magnitude of what is kept, none of it rounded to zero; 0 for no grid.
        epochs: with a schedule: passes over the training split in which the sparsity rises.
        hold: more such passes in which it stays, the choice still moving and the rate falling to 0.3 of lr.
        every: with a schedule: optimizer steps from one choice to the next.
        lr: with a schedule: learning rate of Adam.
        batch: with a schedule: samples a step.
        shift: with a schedule, images only: random shifts by up to this many pixels.
    """

    sparsity: float = 0.5
    scope: Literal["global", "layer"] = "global"
    skip: tuple[str, ...] = ()
    structure: Literal["weight", "neuron", "channel", "n:m"] = "weight"
    keep: tuple[int, ...] = ()
    n: int = 2
    m: int = 4
    schedule: Schedule = "one_shot"
    score: Score = "magnitude"
    regrow: bool = True
    step_ratio: float = 0.0
    epochs: int = 12
    hold: int = 1
    every: int = 10
    lr: float = 0.0005
    batch: int = 128
    shift: int = 0

    effect: ClassVar = "discards_weights"
    tolerance: ClassVar = 0.03

    def __post_init__(self) -> None:
        require(0 <= self.sparsity < 1, "sparsity", self.sparsity, "0 to less than 1")
        require(
            not self.keep or self._units is not None, "keep", list(self.keep), "no counts unless structure=neuron or channel"
        )
        require(not self.keep or min(self.keep) >= 1, "keep", list(self.keep), "whole numbers >= 1")
        require(1 <= self.n < self.m, "n", self.n, f"1 to less than m={self.m}")
        trains = self.schedule != "one_shot"
        require(not trains or self.structure == "weight", "schedule", self.schedule, f"one_shot, as {self.structure} needs")
        require(trains or self.score == "magnitude", "score", self.score, "magnitude, or schedule=cubic or geometric")
        require(0 <= self.step_ratio < float("inf"), "step_ratio", self.step_ratio, "a number >= 0")
        require(trains or not self.step_ratio, "step_ratio", self.step_ratio, "0, or schedule=cubic or geometric")
        require(self.epochs >= 1, "epochs", self.epochs, "a whole number >= 1")
        require(self.hold >= 0, "hold", self.hold, "a whole number >= 0")
        require(self.every >= 1, "every", self.every, "a whole number >= 1")
        self._settings()

    def check(self, graph: Graph) -> None:
        names = graph.matrices()
        known = {*names, *(reader for name in names for reader in graph.readers(name))}
        for name in self.skip:
            if name not in known:
                raise PassError(f"prune: skip={name}: no such weight or node{did_you_mean(name, known)}")
        if self._units:
            check_units(graph, self._units, self.keep, self.skip)
            return
        chosen = self._chosen(graph)
        if not chosen:
            raise PassError("prune: nothing is left to prune, skip names every matrix")
        for group in self._groups(chosen) if self.structure == "weight" else ():
            total = sum(graph.weights[name].values.size for name in group)
            if round(self.sparsity * total) == total > 0:
                raise PassError(
                    f"prune: sparsity={self.sparsity} leaves none of the {total:,} weights of {', '.join(group)}"
                )
        if self.structure == "n:m":
            check_pattern(graph, chosen, self.m)
        if self.schedule != "one_shot" and graph.state:
            raise PassError("prune: a graph with a cache can't be trained; put it before kv_cache, or schedule=one_shot")
        if self.schedule != "one_shot":
            check_settings("prune", graph, self._settings())
        if self.schedule != "one_shot" and any(isinstance(graph.weights[n].encoding, Codebook) for n in chosen):
            raise PassError(
                "prune: weights that share centroids have no values of their own to train; put it before cluster"
            )
        if self.step_ratio and any(not isinstance(graph.weights[n].encoding, Dense) for n in chosen):
            raise PassError("prune: step_ratio puts weights on a grid, but they are quantized already")

    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        if self._units:
            graph, removed = narrow(graph, self._units, self.keep, self.sparsity, self.skip)
            return PassResult(verify(graph), {"removed": removed})
        chosen = self._chosen(graph)
        if self.structure == "n:m":
            pruned = {name: keep_pattern(graph.weights[name], self.n, self.m) for name in chosen}
            return PassResult(graph.with_weights(pruned), _zeros(pruned))
        groups = self._groups(chosen)
        tables: dict[str, list[dict[str, Any]]] = {}
        if self.schedule == "one_shot":
            pruned = {}
            for group in groups:
                pruned |= _prune_group({name: graph.weights[name] for name in group}, self.sparsity)
        else:
            graph, tables["epochs"] = self._train(graph, chosen, groups, context)
            pruned = {name: graph.weights[name] for name in chosen}
        for group in groups:
            _check_zeros({name: pruned[name] for name in group}, self.sparsity)
        return PassResult(graph.with_weights(pruned), _zeros(pruned), tables)

    def _train(
        self, graph: Graph, chosen: list[str], groups: list[list[str]], context: PassContext
    ) -> tuple[Graph, list[dict[str, Any]]]:
        """Return the trained graph, and what was observed after each epoch."""
        batches = -(-len(context.data.train) // self.batch)
        ramp = Ramp(
            groups=tuple(tuple(group) for group in groups),
            images=images(graph, chosen),
            biases=biases(graph, chosen),
            sparsity=self.sparsity,
            schedule=self.schedule,
            score=self.score,
            regrow=self.regrow,
            every=self.every,
            steps=self.epochs * batches,
            step_ratio=self.step_ratio,
        )
        result = train(
            graph,
            context.data,
            self._settings(),
            seed=context.seed,
            projection=ramp,
            observe=observed(context.data),
            progress=shown(context.progress),
            checkpoint=context.checkpoint,
        )
        real = {**result.shadow, **ramp.pruned(result.shadow, result.memory)}
        weights = {name: graph.weights[name].encode(values) for name, values in real.items()}
        return graph.with_weights(weights), list(result.rows)

    @property
    def _units(self) -> Structure | None:
        """What kind of units is removed; None where single weights become zero."""
        return None if self.structure in ("weight", "n:m") else self.structure

    def _settings(self) -> TrainSettings:
        total = self.epochs + self.hold
        stable = max(0.0, self.epochs / total - _WARMUP)
        return TrainSettings(
            epochs=total,
            batch=self.batch,
            lr=self.lr,
            warmup=_WARMUP,
            stable=stable,
            floor=_HOLD_FLOOR,
            optimizer="adam",
            shift=self.shift,
        )

    def _groups(self, chosen: list[str]) -> list[list[str]]:
        """Names of weights that compete with each other."""
        return [chosen] if self.scope == "global" else [[name] for name in chosen]

    def _chosen(self, graph: Graph) -> list[str]:
        return [name for name in graph.matrices() if set(self.skip).isdisjoint({name, *graph.readers(name)})]


def _zeros(weights: dict[str, Weight]) -> dict[str, Any]:
    return {"zeros": {name: int(w.is_zero.sum()) for name, w in weights.items()}}


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
