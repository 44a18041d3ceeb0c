"""What training minimises: cross-entropy, alone or with a teacher's soft targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.ops import OPS
from mlperf_opt.ops.loss import IGNORE, log_softmax

Array = NDArray[Any]


class Objective(Protocol):
    """A loss with its gradient. ``identity`` tells it from others: a checkpoint of another one is refused."""

    @property
    def identity(self) -> str: ...

    def __call__(self, logits: Array, targets: Array, inputs: tuple[Array, ...]) -> tuple[float, Array]:
        """Return (loss, its gradient by ``logits``).

        Args:
            logits: (..., classes).
            targets: class ids (...), -1 where they don't count.
            inputs: what the network was given.
        """
        ...


class CrossEntropy:
    """The mean of -log softmax(logits)[target] over the targets that count."""

    identity = ""

    def __call__(self, logits: Array, targets: Array, inputs: tuple[Array, ...]) -> tuple[float, Array]:
        op = OPS["cross_entropy"]
        loss = op.forward(logits, targets)
        assert op.vjp is not None
        gradient = op.vjp(np.ones((), logits.dtype), loss, logits, targets)[0]
        assert gradient is not None
        return float(loss), gradient


CROSS_ENTROPY = CrossEntropy()


@dataclass(frozen=True)
class Distillation:
    """Learn from a teacher's soft targets too (Hinton et al., arXiv:1503.02531).

    With p = softmax(teacher / T) and q = softmax(logits / T), both means over the targets that count:

        loss = (1 - weight) * cross-entropy + weight * T^2 * mean sum p log(p / q)

    The factor T^2 undoes that soft targets make gradients 1 / T^2 as large: d loss / d logits of the second term is
    weight * T * (q - p) / n.

    Attributes:
        teacher: inputs -> logits, of the shape of the student's.
        weight: share of the soft targets, 0..1.
        temperature: T > 0.
        identity: of the teacher, the weight and the temperature.
    """

    teacher: Callable[[Array], Array]
    weight: float
    temperature: float
    identity: str

    def __call__(self, logits: Array, targets: Array, inputs: tuple[Array, ...]) -> tuple[float, Array]:
        hard, gradient = CROSS_ENTROPY(logits, targets, inputs)
        rows = targets.reshape(-1) != IGNORE
        classes = logits.shape[-1]
        log_p, log_q = (
            log_softmax(scores.reshape(-1, classes)[rows] / logits.dtype.type(self.temperature))
            for scores in (self.teacher(*inputs).astype(logits.dtype, copy=False), logits)
        )
        p, count = np.exp(log_p), log_p.shape[0]
        soft = float((p * (log_p - log_q)).sum()) / count
        gradient = (1 - self.weight) * gradient
        gradient.reshape(-1, classes)[rows] += (self.weight * self.temperature / count) * (np.exp(log_q) - p)
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft, gradient.astype(logits.dtype, copy=False)
