"""What the optimizer moves of each weight, its master: the real values, or the centroids that a codebook's codes stand for.

The gradient goes straight through a grid to the values behind it. Through a codebook it goes to the centroids: one value
stands at many places, so its gradient is the sum over them (Han et al., arXiv:1510.00149, equation 3). Assignments stay as
they are, as in the paper: `Weight.encode`, which chooses the nearest centroid, would move a weight by a whole step where its
centroid moves by a thousandth of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.graph import Codebook, Dense, Weight

Array = NDArray[Any]


def master_of(weight: Weight) -> Array:
    """Return a fresh float32 master."""
    return np.array(weight.encoding.centroids if isinstance(weight.encoding, Codebook) else weight.dense())


def real_values(weight: Weight, master: Array) -> Array:
    """Return the master as values of the weight's shape."""
    return master[weight.values] if isinstance(weight.encoding, Codebook) else master


def argument_of(weight: Weight, part: str, master: Array) -> Array:
    """Return what an op reads: computed from the master as the file will hold it."""
    if part == "scale" or (part == "codes" and isinstance(weight.encoding, Codebook)):
        return weight.part(part)
    if isinstance(weight.encoding, Codebook):
        return master if part == "centroids" else real_values(weight, master)
    if isinstance(weight.encoding, Dense) and weight.values.dtype == master.dtype:
        return master
    return weight.encode(master).part(part)


def gradient_of(weight: Weight, gradient: Array) -> Array:
    """Return the gradient of the master, given that of the real values. The centroid 0 has none: what is pruned stays so."""
    if not isinstance(weight.encoding, Codebook):
        return gradient
    centroids = weight.encoding.centroids
    sums = np.bincount(weight.values.reshape(-1), gradient.reshape(-1), len(centroids))  # float64
    return np.where(centroids == 0, 0, sums).astype(gradient.dtype)


def stored(weight: Weight, master: Array) -> Weight:
    """Return the weight that the master stands for, in the encoding it has. Raises `GraphError` if it is not finite."""
    return weight.with_centroids(master) if isinstance(weight.encoding, Codebook) else weight.encode(master)
