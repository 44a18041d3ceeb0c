"""How closely two executions of one model agree, and what of a difference is rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Graph, split_name

Array = NDArray[Any]


@dataclass(frozen=True)
class Agreement:
    """Two executions of one model, compared.

    Attributes:
        predictions: how many were compared: one a sample, or one a place of a sequence.
        equal: how many of them are the same class or token.
        max_abs_diff: of all logits.
    """

    predictions: int
    equal: int
    max_abs_diff: float

    @property
    def equal_share(self) -> float:
        """Share of equal predictions, 0..1."""
        return self.equal / self.predictions


def agreement(expected: Array, actual: Array) -> Agreement:
    """Compare logits (..., classes) of the same samples.

    Raises:
        GraphError: other shapes, no samples, or an output that is not finite.
    """
    if expected.shape != actual.shape or not expected.size:
        raise GraphError(f"outputs of shape {actual.shape} can't be compared with {expected.shape}")
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        raise GraphError("an output is not finite")
    same = expected.argmax(axis=-1) == actual.argmax(axis=-1)
    return Agreement(same.size, int(same.sum()), float(np.abs(expected - actual).max()))


def is_quantized(graph: Graph) -> bool:
    """Whether activations, or what a cache keeps, are rounded: a last bit of float32 may move an output by a step."""
    return any(node.op == "quantize" for node in graph.nodes) or _rounds_state(graph)


def _rounds_state(graph: Graph) -> bool:
    return any(state.spec.dtype in ("int8", "float16") for state in graph.state)


# made of exact values, their value is exact: the same bits in any runtime that keeps to the arithmetic of `ops.quantized`
_EXACT = ("flatten", "relu", "add", "max_pool2d", "quantize", "row_scale", "row_zero", "qlinear", "qconv2d")


def may_flip(graph: Graph) -> bool:
    """Whether a value whose last bits depend on the order of a summation is rounded to codes anywhere in the graph."""
    exact = set(graph.inputs)
    if _rounds_state(graph):
        return True
    for node in graph.nodes:
        known = all(name in exact or name not in graph.specs or split_name(name)[0] in graph.weights for name in node.inputs)
        if node.op == "quantize" and not known:
            return True
        if known and node.op in _EXACT and node.attributes.get("activation") != "gelu":
            exact.add(node.output)
    return False


def difference(expected: Array, actual: Array, quantized: bool) -> str:
    """Return how two outputs differ beyond rounding, ``""`` if they don't. All elements are compared.

    Floats may differ by 1e-4 of the largest (another batch size is another order of summation); with quantized activations
    a rounding may fall the other way, which moves an output by a few steps: 5 % of the largest. Tokens must be equal; with
    quantized activations 97 % of them.
    """
    if expected.shape != actual.shape:
        return f"shape {actual.shape} instead of {expected.shape}"
    if expected.dtype.kind != "f":
        same = float((expected == actual).mean())
        limit = 0.97 if quantized else 1.0
        return "" if same >= limit else f"{same:.1%} of the tokens agree, expected {limit:.0%}"
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):  # a limit of infinity would let anything pass
        return "an output is not finite"
    largest = float(np.abs(expected).max())
    worst = float(np.abs(expected - actual).max())
    limit = (0.05 if quantized else 1e-4) * max(largest, 1.0)
    return "" if worst <= limit else f"outputs differ by {worst:.3g}, at most {limit:.3g} is rounding"
