"""Constrained training: the forward pass uses a projection of float32 shadow weights, the gradient goes straight through.

The optimizer moves every shadow weight as if there were no constraint (straight-through: Bengio, arXiv:1308.3432). What the
constraint is, a mask, a grid, both, and how it moves, is one object: frozen masks, masks that grow back from the shadow
weights (Guo et al., arXiv:1608.04493) and quantization in the loop are cases of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]


class Projection(Protocol):
    """What the forward pass may use. Both methods are pure functions: what has to last is in ``memory``.

    Attributes:
        every: optimizer steps from one `refresh` to the next; 0 for one that never changes.
        identity: hash or text that tells this projection from others: a checkpoint of another one is refused.
    """

    @property
    def every(self) -> int: ...

    @property
    def identity(self) -> str: ...

    def refresh(self, shadow: Arrays, memory: Arrays, step: int, total: int) -> dict[str, Array]:
        """Return the new memory (masks, steps of a grid): any arrays by any names; a checkpoint keeps them.

        Args:
            shadow: the float32 shadow weights.
            memory: what the last refresh returned; empty at first.
            step: optimizer steps done.
            total: optimizer steps in all.
        """
        ...

    def project(self, shadow: Arrays, memory: Arrays) -> dict[str, Array]:
        """Return what the forward pass uses in place of some of the shadow weights: float32, by the same names."""
        ...


class Free:
    """No constraint."""

    every = 0
    identity = ""

    def refresh(self, shadow: Arrays, memory: Arrays, step: int, total: int) -> dict[str, Array]:
        return {}

    def project(self, shadow: Arrays, memory: Arrays) -> dict[str, Array]:
        return {}


@dataclass(frozen=True)
class Frozen:
    """Entries outside of fixed masks are zero.

    Attributes:
        masks: weight name -> bool array; entries that are False stay zero.
    """

    masks: Arrays

    every = 0

    @property
    def identity(self) -> str:
        digest = hashlib.sha256()
        for name, mask in sorted(self.masks.items()):
            digest.update(f"{name} {mask.shape}".encode() + mask.tobytes())
        return digest.hexdigest()

    def refresh(self, shadow: Arrays, memory: Arrays, step: int, total: int) -> dict[str, Array]:
        return {}

    def project(self, shadow: Arrays, memory: Arrays) -> dict[str, Array]:
        # a choice, not a product: -1 * 0 is -0.0, which a file would have to keep
        return {name: np.where(mask, shadow[name], np.float32(0)) for name, mask in self.masks.items()}
