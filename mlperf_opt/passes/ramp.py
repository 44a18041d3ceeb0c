"""Pruning while training: how fast, by which score, and the masks that follow from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.graph import Graph, split_name
from mlperf_opt.passes.calibration import mean_step, on_grid

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Schedule = Literal["one_shot", "cubic", "geometric"]
Score = Literal["magnitude", "rate"]

_RATE_BELOW = 0.5  # share of weights kept from which on it costs more to say where one is than what it is
_VALUE_BITS = 2.5  # sign and magnitude of a survivor, on average


def sparsity_at(schedule: Schedule, target: float, t: float) -> float:
    """Return the share of zeros at ``t``, 0..1.

    cubic: target * (1 - (1 - t)^3) (Zhu and Gupta, arXiv:1710.01878). geometric: what is kept shrinks by the same factor in
    equal times, (1 - target)^t: the last weights, which matter most, go slowest.
    """
    t = min(max(t, 0.0), 1.0)
    if schedule == "cubic":
        return target * (1 - (1 - t) ** 3)
    return 1 - (1 - target) ** t if schedule == "geometric" else target


def scores(values: Array, mask: Array | None, image: tuple[int, ...]) -> Array:
    """Return |w|, or with a mask |w| / sqrt(bits): what a weight is worth for what its place costs in the file.

    bits = 2.5 - log2 p, and p, how likely a weight is to be kept there, follows from how many are kept in its row and in its
    column: a coder that knows both spends next to nothing on dead ones.

    Args:
        values: (M, ...).
        mask: what is kept now.
        image: (C, H, W) of the columns of a linear layer behind a flatten, where neighbours are alike; else ().
    """
    magnitudes = np.abs(values)
    if mask is None:
        return magnitudes
    rows = mask.reshape(len(mask), -1).sum(axis=1, dtype=np.float32)
    columns = _columns(mask, image)
    total = np.float32(mask.sum() + 1)
    chance = (rows[:, None] + np.float32(0.5)) * ((columns + np.float32(0.5)) / total)
    bits = np.float32(_VALUE_BITS) - np.log2(np.clip(chance, np.float32(1e-4), np.float32(0.9)))
    return magnitudes / np.sqrt(bits).reshape(values.shape)


def _columns(mask: Array, image: tuple[int, ...]) -> Array:
    """Return how many are kept in each column, averaged over those that are alike: a kernel, or 3x3 neighbours."""
    counts = mask.sum(axis=0, dtype=np.float32)
    if mask.ndim == 4:
        return np.broadcast_to(counts.mean(axis=(1, 2), keepdims=True), counts.shape).reshape(-1)
    if not image:
        return counts
    channels, height, width = image
    sums = np.zeros((2, channels, height + 2, width + 2), np.float32)
    for i in range(3):
        for j in range(3):
            sums[0, :, i : i + height, j : j + width] += counts.reshape(image)
            sums[1, :, i : i + height, j : j + width] += 1
    inner = sums[:, :, 1:-1, 1:-1]
    return (inner[0] / inner[1]).reshape(-1)


def images(graph: Graph, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Return (C, H, W) of what each matrix reads where that is a flattened image, () elsewhere."""
    found, matrices = {}, graph.matrices()
    for name in names:
        node = matrices[name]
        x = node.argument("x") if node.op == "linear" else ""
        flattened = next((n.inputs[0] for n in graph.nodes if n.output == x and n.op == "flatten"), "")
        shape = graph.specs[flattened].shape if flattened else ()
        found[name] = tuple(int(d) for d in shape[1:]) if len(shape) == 4 else ()
    return found


def biases(graph: Graph, names: list[str]) -> dict[str, str]:
    """Return the bias of each matrix's node, for those that have one."""
    found, matrices = {}, graph.matrices()
    for name in names:
        node = matrices[name]
        bias = split_name(node.argument("bias"))[0] if "bias" in node.definition.parameters else ""
        if bias:
            found[name] = bias
    return found


@dataclass(frozen=True)
class Ramp:
    """A `Projection`: ever fewer weights, chosen anew from the shadow weights every few steps; then quantization too.

    Attributes:
        groups: names of weights that compete with each other.
        images: see `images`.
        biases: see `biases`; they are put on the grid of their matrix.
        sparsity, schedule, score, regrow, every: as in the pass prune.
        steps: optimizer steps in which the sparsity rises.
        step_ratio: from half of them on, weights lie on a grid of this times the mean magnitude of what is kept; 0 for none.
    """

    groups: tuple[tuple[str, ...], ...]
    images: Mapping[str, tuple[int, ...]]
    biases: Mapping[str, str]
    sparsity: float
    schedule: Schedule
    score: Score
    regrow: bool
    every: int
    steps: int
    step_ratio: float

    @property
    def identity(self) -> str:
        return repr(self)

    def refresh(self, shadow: Arrays, memory: Arrays, step: int, total: int) -> dict[str, Array]:
        # what is chosen now lasts until the next time: so the last choice has all of the sparsity
        t = (step + self.every) / self.steps
        sparsity = sparsity_at(self.schedule, self.sparsity, t)
        found: dict[str, Array] = {}
        for group in self.groups:
            for name, mask in self._masks(group, shadow, memory, sparsity).items():
                found[f"mask/{name}"] = mask
                if self.step_ratio and t >= 0.5:
                    found[f"step/{name}"] = mean_step(shadow[name][mask], None, self.step_ratio)
        return found

    def _masks(self, group: tuple[str, ...], shadow: Arrays, memory: Arrays, sparsity: float) -> dict[str, Array]:
        old = {name: memory.get(f"mask/{name}", np.ones(shadow[name].shape, bool)) for name in group}
        by_rate = self.score == "rate" and 1 - sparsity < _RATE_BELOW
        parts = []
        for name in group:
            score = scores(shadow[name], old[name] if by_rate else None, self.images[name])
            parts.append((score if self.regrow else np.where(old[name], score, np.float32(-1))).reshape(-1))
        joint = np.concatenate(parts)
        zeros = round(sparsity * joint.size)
        keep = np.ones(joint.size, bool)
        if zeros:
            keep[np.argpartition(joint, zeros - 1)[:zeros]] = False
        ends = np.cumsum([part.size for part in parts])
        return {
            name: keep[end - old[name].size : end].reshape(old[name].shape) for name, end in zip(group, ends, strict=True)
        }

    def project(self, shadow: Arrays, memory: Arrays) -> dict[str, Array]:
        projected: dict[str, Array] = {}
        for name in (name for group in self.groups for name in group):
            mask, step = memory[f"mask/{name}"], memory.get(f"step/{name}")
            kept = shadow[name][mask]
            projected[name] = np.zeros_like(shadow[name])
            projected[name][mask] = kept if step is None else on_grid(kept, step)
            if step is not None and name in self.biases:
                bias = self.biases[name]
                projected[bias] = np.rint(shadow[bias] / step) * step
        return projected

    def pruned(self, shadow: Arrays, memory: Arrays) -> dict[str, Array]:
        """Return the matrices with the last masks and real values: off the grid, so that a pass may choose another."""
        names = [name for group in self.groups for name in group]
        return {name: np.where(memory[f"mask/{name}"], shadow[name], np.float32(0)) for name in names}
