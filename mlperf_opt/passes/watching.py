"""What passes that train share: what they refuse, and what they say meanwhile: quality on the calibration split, and about
how many bytes the weights need."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.data import Dataset
from mlperf_opt.errors import ConfigError, PassError
from mlperf_opt.graph import Graph
from mlperf_opt.runtimes import NUMPY, Runtime, rows_at_once
from mlperf_opt.training import EpochReport, TrainSettings, check_trainable

Array = NDArray[Any]


def check_settings(name: str, graph: Graph, settings: TrainSettings) -> None:
    """Raise `PassError` of the pass ``name`` for settings that ``graph`` can't be trained with."""
    try:
        check_trainable(graph, settings)
    except ConfigError as error:
        raise PassError(f"{name}: {error}") from None


def observed(data: Dataset) -> Callable[[EpochReport], dict[str, Any]]:
    """Return what `train` calls to observe an epoch: it returns a row of the table."""

    def observe(epoch: EpochReport) -> dict[str, Any]:
        quality, size = calibration_accuracy(epoch.graph, data), estimated_bytes(epoch.graph)
        return {"epoch": epoch.epoch, "loss": epoch.loss, "calibration": quality, "estimated_bytes": size}

    return observe


def shown(show: Callable[[str], None]) -> Callable[[EpochReport], None]:
    """Return what `train` calls after each epoch that was `observed`: it shows a line."""

    def report(epoch: EpochReport) -> None:
        show(
            f"epoch {epoch.epoch}/{epoch.epochs} loss {epoch.loss:.4f} train {epoch.accuracy:.1%}"
            f" calibration {epoch.row['calibration']:.2%} about {epoch.row['estimated_bytes']:,} bytes {epoch.seconds:.1f} s"
        )

    return report


def calibration_accuracy(graph: Graph, data: Dataset, runtime: Runtime = NUMPY) -> float:
    """Return the share of the calibration split's targets that are predicted."""
    executable, split = runtime.prepare(graph), data.calibration
    hits = counted = 0
    batch = rows_at_once(split.inputs)
    for start in range(0, len(split), batch):
        targets = split.targets[start : start + batch]
        found = executable(split.inputs[start : start + batch]).argmax(axis=-1)
        hits += int((found == targets)[targets >= 0].sum())
        counted += int((targets >= 0).sum())
    return hits / counted


def estimated_bytes(graph: Graph) -> int:
    """Return the entropy of the parameters in bytes: which are zero, each weight for itself, and the values of the others.

    An estimate to follow a training with, and to nobody's file: rows compare the bytes of files.
    """
    bits = 0.0
    for weight in graph.parameters().values():
        values = weight.values[~weight.is_zero]
        counts = np.unique(values, return_counts=True)[1]
        # values that hardly repeat are numbers, not symbols: they cost their bytes
        symbols = 8.0 * values.nbytes if len(counts) > values.size / 2 else _entropy(counts)
        bits += symbols + _entropy(np.array([values.size, weight.values.size - values.size]))
    return math.ceil(bits / 8)


def _entropy(counts: Array) -> float:
    """Bits of a message with these counts of symbols, under their own frequencies."""
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) if counts.size else 0.0
