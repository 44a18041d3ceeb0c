"""Pruned weights in the order in which the sparse kernels read them (`kernels/sparse.py`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.kernels.simd import LANES
from mlperf_opt.kernels.sparse import FEW_UNROLL, MANY_UNROLL

Array = NDArray[Any]
MOST_WORDS = 1 << 16  # inputs that an uint16 can name
_CODES = 4  # int8 codes of a word


class Packed(NamedTuple):
    """A packed weight.

    Attributes:
        values: words, zeros where a panel or column is filled up.
        places: uint16, the input that each word is multiplied by.
        starts: int32, where each panel or column starts, and the end.
        order: int32, the columns of each panel; those behind the last column are there to fill up.
    """

    values: Array
    places: Array
    starts: Array
    order: Array


def words_of(weight: Array) -> Array:
    """(M, K) float -> float32; int8 codes -> four in an int32, the last filled up with zeros."""
    if weight.dtype != np.int8:
        return weight.astype(np.float32, copy=False)
    filled = np.zeros((len(weight), -(-weight.shape[1] // _CODES) * _CODES), np.int8)
    filled[:, : weight.shape[1]] = weight
    return filled.view(np.int32)


def count_few(words: Array) -> int:
    """Return how many words `pack_few` makes of a weight, those that fill up included."""
    return int(_panels(words)[2][-1]) * LANES


def count_many(words: Array) -> int:
    """Return how many words `pack_many` makes of a weight, those that fill up included."""
    return int(_starts(np.count_nonzero(words, axis=1), MANY_UNROLL)[-1])


def pack_few(words: Array) -> Packed:
    """(M, W) words -> panels of 16 columns of about the same length."""
    order, lengths, starts = _panels(words)
    rows, columns = np.nonzero(words[order])
    entries = starts[rows // LANES] + _places_in_row(rows, lengths)
    values, places = np.zeros((starts[-1], LANES), words.dtype), np.zeros((starts[-1], LANES), np.uint16)
    values[entries, rows % LANES], places[entries, rows % LANES] = words[order][rows, columns], columns
    all_columns = np.concatenate([order, np.arange(len(order), len(lengths))])
    return Packed(values, places, starts.astype(np.int32), all_columns.astype(np.int32))


def pack_many(words: Array) -> Packed:
    """(M, W) words -> one column after the other."""
    counts = np.count_nonzero(words, axis=1)
    starts = _starts(counts, MANY_UNROLL)
    rows, columns = np.nonzero(words)
    entries = starts[rows] + _places_in_row(rows, counts)
    values, places = np.zeros(starts[-1], words.dtype), np.zeros(starts[-1], np.uint16)
    values[entries], places[entries] = words[rows, columns], columns
    return Packed(values, places, starts.astype(np.int32), np.arange(len(words), dtype=np.int32))


def _panels(words: Array) -> tuple[Array, Array, Array]:
    """Return (columns, the longest first; their numbers of words, filled up to whole panels; starts of the panels)."""
    counts = np.count_nonzero(words, axis=1)
    # stable, so that one weight is packed in one way
    order = np.argsort(-counts, kind="stable")
    lengths = np.zeros(-(-len(words) // LANES) * LANES, np.int64)
    lengths[: len(order)] = counts[order]
    return order, lengths, _starts(lengths.reshape(-1, LANES).max(axis=1), FEW_UNROLL)


def _starts(lengths: Array, multiple: int) -> Array:
    return np.concatenate([[0], np.cumsum(-(-lengths // multiple) * multiple)])


def _places_in_row(rows: Array, lengths: Array) -> Array:
    """Numbers of the entries within their rows; ``rows`` ascend."""
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(len(rows)) - firsts[rows]
