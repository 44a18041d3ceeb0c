"""Weights in the order in which the micro-kernels read them (`kernels/tiles.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.kernels.emit import LANES

Array = NDArray[Any]
GROUP = 4  # int8 weights of one input group


def panels_of(columns: int) -> int:
    """Panels of 16 columns."""
    return -(-columns // LANES)


def channels_last(weight: Array, image: tuple[int, int, int] | None) -> Array:
    """Order the inputs of a linear weight (M, C H W) as a channels-last image has them."""
    if image is None:
        return weight
    return weight.reshape(len(weight), *image).transpose(0, 2, 3, 1).reshape(len(weight), -1)


def segments_of(weight: Array) -> Array:
    """(M, K) -> (M, 1, K); filters (M, C, kh, kw) -> (M, kh, kw C): a segment is one line of the filter."""
    if weight.ndim == 2:
        return weight[:, None, :]
    m, c, kh, kw = weight.shape
    return weight.transpose(0, 2, 3, 1).reshape(m, kh, kw * c)


def pack_floats(weight: Array) -> Array:
    """(M, S, K) of any dtype -> [panel][segment][input][16 columns], zeros in the columns that fill up."""
    m, segments, k = weight.shape
    filled = np.zeros((panels_of(m) * LANES, segments, k), weight.dtype)
    filled[:m] = weight
    return np.ascontiguousarray(filled.reshape(-1, LANES, segments, k).transpose(0, 2, 3, 1))


def pack_int8(weight: Array, groups: int) -> Array:
    """int8 (M, S, K) -> [panel][segment][group][16 columns][4 inputs], zeros where a group or panel is filled up."""
    m, segments, k = weight.shape
    filled = np.zeros((panels_of(m) * LANES, segments, groups * GROUP), np.int8)
    filled[:m, :, :k] = weight
    split = filled.reshape(-1, LANES, segments, groups, GROUP)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 1, 4))


def per_column(values: Array, columns: int, dtype: Any) -> Array:
    """One number for each column, or one for all, filled up to whole panels with zeros."""
    filled = np.zeros(panels_of(columns) * LANES, dtype)
    filled[:columns] = values
    return filled
