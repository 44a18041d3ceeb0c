"""Optimizers: SGD with momentum, Adam and AdamW. Each keeps its slots in arrays that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Slots = dict[str, Array]
_BLOCK = 16_384  # numbers; the arrays of an update of so many stay in the CPU's second cache from one line to the next


class Optimizer(Protocol):
    """How one weight moves. ``step`` counts from 1."""

    def init(self, weight: Array) -> Slots:
        """Return the optimizer's memory for this weight."""
        ...

    def update(self, weight: Array, grad: Array, slots: Slots, lr: float, step: int) -> None:
        """Move ``weight`` and ``slots`` in place."""
        ...


@dataclass(frozen=True)
class SGD:
    """v = momentum * v + g; w -= lr * v (Sutskever et al., 2013, in the form without dampening)."""

    momentum: float = 0.9
    weight_decay: float = 0.0

    def init(self, weight: Array) -> Slots:
        return {"velocity": np.zeros_like(weight)}

    def update(self, weight: Array, grad: Array, slots: Slots, lr: float, step: int) -> None:
        velocity = slots["velocity"]
        velocity *= self.momentum
        velocity += grad + self.weight_decay * weight
        weight -= lr * velocity


@dataclass(frozen=True)
class Adam:
    """m, v: moving means of g and g^2, corrected for their start at 0 (Kingma and Ba, arXiv:1412.6980, algorithm 1).

    ``decoupled`` takes the weight decay out of the gradient: AdamW (Loshchilov and Hutter, arXiv:1711.05101).
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def init(self, weight: Array) -> Slots:
        return {"m": np.zeros_like(weight), "v": np.zeros_like(weight)}

    def update(self, weight: Array, grad: Array, slots: Slots, lr: float, step: int) -> None:
        for rows in _blocks(weight):
            self._update(weight[rows], grad[rows], slots["m"][rows], slots["v"][rows], lr, step)

    def _update(self, weight: Array, grad: Array, m: Array, v: Array, lr: float, step: int) -> None:
        if self.weight_decay and self.decoupled:
            weight *= 1 - lr * self.weight_decay
        elif self.weight_decay:
            grad = grad + self.weight_decay * weight
        m *= self.beta1
        m += (1 - self.beta1) * grad
        v *= self.beta2
        square = grad * grad
        square *= 1 - self.beta2
        v += square
        root = np.divide(v, 1 - self.beta2**step, out=square)  # v_hat
        np.sqrt(root, out=root)
        root += self.eps
        move = m / (1 - self.beta1**step)  # m_hat
        move *= lr
        move /= root
        weight -= move


def _blocks(weight: Array) -> Iterator[slice]:
    """Yield slices of the first axis that hold about `_BLOCK` numbers."""
    rows = max(1, _BLOCK * len(weight) // max(1, weight.size))
    for start in range(0, len(weight), rows):
        yield slice(start, start + rows)


def clip_by_global_norm(grads: dict[str, Array], limit: float) -> float:
    """Scale all gradients in place so that their joint L2 norm is at most ``limit``; return the norm before."""
    norm = float(np.sqrt(sum(float(np.vdot(g, g)) for g in grads.values())))
    if norm > limit:
        for grad in grads.values():
            np.multiply(grad, limit / norm, out=grad)
    return norm
