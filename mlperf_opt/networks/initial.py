"""Initial weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def he_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Uniform (M, inputs...) with variance 2 / fan-in, for layers before a relu (He et al., arXiv:1502.01852)."""
    bound = math.sqrt(6 / math.prod(shape[1:]))
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def normal(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> Array:
    """Normal with the given standard deviation (0.02 is GPT-2's; a residual branch divides it by sqrt(2 layers))."""
    return (rng.standard_normal(shape) * deviation).astype(np.float32)


def zeros(*shape: int) -> Array:
    """Zeros."""
    return np.zeros(shape, np.float32)


def ones(*shape: int) -> Array:
    """Ones."""
    return np.ones(shape, np.float32)
