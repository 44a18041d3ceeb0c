"""Ranges of activations, from the calibration split: minmax, percentile or mse."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.data import Dataset
from mlperf_opt.graph import Graph
from mlperf_opt.ops.quantized import affine_range
from mlperf_opt.runtimes import intermediate_values

Array = NDArray[Any]
Method = Literal["minmax", "percentile", "mse"]
Grid = tuple[Array, Array]  # scale float32 (), zero point uint8 ()

_MSE_SAMPLE = 100_000  # values that the mse search looks at
_TOKENS = 16_384  # of a text: a layer's values are in memory at once
_MSE_RATIOS = np.linspace(0.2, 1.0, 81)


def coarse(scale: Array) -> Array:
    """Round positive scales up to 8 significant bits (bfloat16), so that a file stores each in two bytes.

    Up, so that no value falls out of the grid; the step grows by less than 1 %.
    """
    bits = np.ascontiguousarray(scale, np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32).reshape(np.shape(scale))


def mean_step(values: Array, axis: int | None, ratio: float) -> Array:
    """Return ``ratio`` times the mean magnitude of what is not zero, along ``axis`` (None: of all), in two bytes.

    Pruning leaves a distribution with a hole around zero: the mean is a better measure of it than the largest value. Nothing
    but zeros has the step 1.
    """
    others = tuple(a for a in range(values.ndim) if a != axis) if axis is not None else None
    total = np.abs(values).sum(axis=others, dtype=np.float64)
    count = np.count_nonzero(values, axis=others)
    step = np.where(total > 0, ratio * total / np.maximum(count, 1), 1.0)
    return coarse(np.maximum(step, np.finfo(np.float32).tiny).astype(np.float32))


def on_grid(values: Array, step: Array) -> Array:
    """Round to multiples of ``step``, away from zero where that would be nearest: what was kept is never lost."""
    return np.copysign(np.maximum(np.rint(np.abs(values) / step), np.float32(1)) * step, values)


def calibrate(graph: Graph, names: set[str], data: Dataset, method: Method, percentile: float) -> dict[str, Grid]:
    """Return the uint8 grid of each named value over the calibration split; of a long text over its first windows.

    Args:
        graph: float graph.
        names: values of the graph.
        data: its calibration split is run through the graph, all at once: of rows of tokens at most `_TOKENS` tokens.
        method: minmax (the whole range), percentile (cuts the tails), mse (the range whose grid has the smallest mean
            squared error).
        percentile: of the percentile method, in percent.
    """
    inputs = data.calibration.inputs
    rows = max(1, _TOKENS // inputs.shape[1]) if inputs.dtype.kind == "i" else len(inputs)

    def grid(_name: str, value: Array) -> Grid:
        return _grid(value.reshape(-1), method, percentile)

    return intermediate_values(graph, names, inputs[:rows], of=grid)


def _grid(values: Array, method: Method, percentile: float) -> Grid:
    low, high = values.min(), values.max()
    if method == "percentile":
        low, high = np.percentile(values.astype(np.float64), [100 - percentile, percentile])
    elif method == "mse":
        low, high = _smallest_error(values, low, high)
    return grid_of(low, high)


def grid_of(low: Array, high: Array) -> Grid:
    """Return the uint8 grid over [low, high], its scale rounded to what a file stores in two bytes."""
    scale = coarse(affine_range(low, high)[0])
    # The zero point belongs to the rounded scale.
    zero = np.clip(np.rint(-np.minimum(np.float64(low), 0) / scale), 0, 255).astype(np.uint8)
    return scale, zero


def _smallest_error(values: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Search the ratio by which the range [low, high] is best shortened (both ends alike)."""
    step = -(-len(values) // _MSE_SAMPLE)
    sample = values[::step].astype(np.float64)
    errors = []
    for ratio in _MSE_RATIOS:
        scale, zero = grid_of(low * ratio, high * ratio)
        codes = np.clip(np.rint(sample / scale) + zero, 0, 255)
        # relative to the range, because the square of 3e38 is no float64 problem but that of its sum may be
        errors.append(np.mean(np.square(((codes - zero) * scale - sample) / max(abs(float(low)), abs(float(high)), 1e-300))))
    best = _MSE_RATIOS[int(np.argmin(errors))]
    return low * best, high * best
