"""A weight: the codes as stored, and the encoding that gives them their meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError

Array = NDArray[Any]
_SPARSE_FROM = 4096  # elements from which on looking for zeros first is quicker

MAX_CENTROIDS = 256  # the codes are uint8


@dataclass(frozen=True)
class Dense:
    """The values mean what they say (float32, float16, or the small integers of zero points)."""


@dataclass(frozen=True)
class Affine:
    """real = code * scale: symmetric integers.

    Attributes:
        scale: float32, () for the whole tensor or (M,) along ``axis``.
        axis: the axis of the scales, None for one scale.
        bits: the codes lie in -(2^(bits-1) - 1) .. 2^(bits-1) - 1; 8 for weights, 32 for biases.
    """

    scale: Array
    axis: int | None
    bits: int

    @property
    def limit(self) -> int:
        """The largest magnitude of a code."""
        return 2 ** (self.bits - 1) - 1

    def spread(self, ndim: int) -> Array:
        """Return the scales shaped to multiply codes of ``ndim`` axes."""
        if self.axis is None:
            return self.scale
        return self.scale.reshape([-1 if axis == self.axis else 1 for axis in range(ndim)])


@dataclass(frozen=True)
class Codebook:
    """real = centroids[code]: weights that share a few values (Han et al., arXiv:1510.00149).

    A codebook that holds 0.0 has it exactly, so what is pruned stays so.

    Attributes:
        centroids: float32 (K,), strictly ascending, 1 <= K <= 256; the codes are uint8 indices. Ascending, so that the
            nearest is found by bisection, and neighbouring codes are neighbouring values, which a file codes well.
    """

    centroids: Array

    def nearest(self, dense: Array) -> Array:
        """Return the indices of the nearest centroids, uint8; halfway between two, the lower."""
        # float64: halfway between two float32 need not be a float32
        ends = self.centroids.astype(np.float64)
        return np.searchsorted((ends[1:] + ends[:-1]) / 2, dense.astype(np.float64)).astype(np.uint8)


Encoding = Dense | Affine | Codebook


@dataclass(frozen=True)
class Weight:
    """Codes and their encoding. The arrays are read-only: a pass makes a new weight.

    How the bytes are packed in a file is the artifact's business, not the weight's.
    """

    values: Array
    encoding: Encoding = Dense()

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _frozen(self.values))
        if isinstance(self.encoding, Affine):
            object.__setattr__(self.encoding, "scale", _frozen(self.encoding.scale))
        if isinstance(self.encoding, Codebook):
            object.__setattr__(self.encoding, "centroids", _frozen(self.encoding.centroids))

    def dense(self) -> Array:
        """Return the real values as float32."""
        if isinstance(self.encoding, Affine):
            return self.values.astype(np.float32) * self.encoding.spread(self.values.ndim)
        if isinstance(self.encoding, Codebook):
            return self.encoding.centroids[self.values]
        return self.values.astype(np.float32, copy=False)

    @property
    def zero(self) -> int:
        """The code that means exactly 0.

        Raises:
            GraphError: a codebook without it: nothing in it can be pruned.
        """
        if not isinstance(self.encoding, Codebook):
            return 0
        found = np.flatnonzero(self.encoding.centroids == 0)
        if not found.size:
            raise GraphError("a codebook without a centroid 0.0 can't hold a zero")
        return int(found[0])

    @property
    def is_zero(self) -> Array:
        """Which real values are exactly 0, bool."""
        if isinstance(self.encoding, Codebook):
            return (self.encoding.centroids == 0)[self.values]
        return self.values == 0

    def encode(self, dense: Array) -> Weight:
        """Return ``dense`` in this weight's encoding and dtype: rounded to its grid, saturated at its ends.

        Raises:
            GraphError: a value that is not finite (a diverged training must not turn into codes), or a zero where the
                codebook has none (a pruned weight must not come back to life).
        """
        if not np.isfinite(dense).all():
            raise GraphError("a value that is not finite can't be encoded")
        if isinstance(self.encoding, Affine):
            if self.encoding.axis is None and dense.size >= _SPARSE_FROM:
                where = np.flatnonzero(dense)
                if where.size < dense.size // 4:  # training encodes at every step: of a sparse weight the rest is zero
                    codes = np.zeros(dense.size, self.values.dtype)
                    codes[where] = Weight(self.values[:0], self.encoding).encode(dense.reshape(-1)[where]).values
                    return Weight(codes.reshape(dense.shape), self.encoding)
            # float64: an int32 limit is not a float32, and a bias may round to it
            codes = np.rint(dense.astype(np.float64) / self.encoding.spread(dense.ndim))
            codes = np.clip(codes, -self.encoding.limit, self.encoding.limit)
            return Weight(codes.astype(self.values.dtype), self.encoding)
        if isinstance(self.encoding, Codebook):
            if not (dense != 0).all():
                _ = self.zero
            return Weight(self.encoding.nearest(dense), self.encoding)
        dtype = self.values.dtype
        if dtype.kind == "f":
            ends = np.finfo(dtype)
            return Weight(np.clip(dense, ends.min, ends.max).astype(dtype), self.encoding)
        limits = np.iinfo(dtype)
        return Weight(np.clip(np.rint(dense.astype(np.float64)), limits.min, limits.max).astype(dtype), self.encoding)

    def with_centroids(self, centroids: Array) -> Weight:
        """Return a codebook's codes with other centroids, in any order: assignments stay, equal centroids become one.

        Args:
            centroids: (K,), one for each that it has, in the same order.

        Raises:
            GraphError: a centroid that is not finite.
        """
        if not np.isfinite(centroids).all():
            raise GraphError("a centroid that is not finite can't be stored")
        # + 0: no negative zero, which would be a zero that isn't the zero
        ascending, places = np.unique(centroids.astype(np.float32) + np.float32(0), return_inverse=True)
        return Weight(places.astype(np.uint8)[self.values], Codebook(ascending))

    def part(self, part: str) -> Array:
        """Return what an op asks for: ``""`` the real values, ``"codes"``, ``"scale"`` or ``"centroids"`` as stored."""
        if part == "":
            return self.dense()
        if part == "codes":
            return self.values
        if part == "scale" and isinstance(self.encoding, Affine):
            return self.encoding.scale
        if part == "centroids" and isinstance(self.encoding, Codebook):
            return self.encoding.centroids
        raise GraphError(f"a weight with encoding {type(self.encoding).__name__} has no part {part!r}")


def _frozen(array: Array) -> Array:
    if array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C")
        array.setflags(write=False)
    return array


def split_name(argument: str) -> tuple[str, str]:
    """Split an argument into its weight and part: ``fc1.weight:codes`` -> (``fc1.weight``, ``codes``)."""
    name, _, part = argument.partition(":")
    return name, part
