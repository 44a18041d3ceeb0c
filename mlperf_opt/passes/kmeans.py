"""k-means in one dimension: sorted, a cluster is an interval, so to assign is to bisect."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Start = Literal["linear", "density", "random"]

_ITERATIONS = 1000  # of Lloyd's algorithm, which for weights ends after 20 to 300


def kmeans(values: Array, clusters: int, start: Start, rng: np.random.Generator) -> Array:
    """Return ascending float32 centroids of ``values``, none without a value nearest to it.

    Where there are no more different values than clusters, they are the centroids. Otherwise Lloyd's algorithm (1982) from
    one of the three starts of Han et al. (arXiv:1510.00149, section 3.2) until no value changes its cluster: a local best.

    Args:
        values: finite numbers, any shape.
        clusters: how many at most, at least 1.
        start: linear (evenly between the ends), density (as many values between two) or random (different values drawn).
        rng: for start=random.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    different = np.unique(ordered)
    if len(different) <= clusters:
        return different.astype(np.float32)
    centroids = _start(ordered, different, clusters, start, rng)
    ends = _ends(ordered, centroids)
    for _ in range(_ITERATIONS):
        counts = np.diff(ends)
        full = counts > 0  # an empty cluster waits where it is for a value to come near
        # sums of intervals, not differences of sums from the start: weights may be of very different sizes
        centroids[full] = np.add.reduceat(ordered, ends[:-1][full]) / counts[full]
        moved = _ends(ordered, centroids)
        if np.array_equal(moved, ends):
            break
        ends = moved
    return np.unique(centroids[np.diff(ends) > 0].astype(np.float32))


def _start(ordered: Array, different: Array, clusters: int, start: Start, rng: np.random.Generator) -> Array:
    if start == "linear":
        return np.linspace(ordered[0], ordered[-1], clusters)
    if start == "density":
        return np.quantile(ordered, (np.arange(clusters) + 0.5) / clusters)
    return np.sort(rng.choice(different, clusters, replace=False))


def _ends(ordered: Array, centroids: Array) -> Array:
    """Return where in ``ordered`` each centroid's values begin, and the end: halfway between two belongs to the lower."""
    inner = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, side="right")
    return np.concatenate([[0], inner, [len(ordered)]])
