"""Dropout, which is no op: the trainer multiplies some values by random factors, and no graph or file knows of it.

Dropped are the embedded tokens and what each branch adds to the residual stream (Vaswani, arXiv:1706.03762, 5.4). A number
is kept with the probability 1 - rate and then divided by it, so that nothing has to be scaled afterwards (Srivastava et al.,
JMLR 15, 2014, in the inverted form).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import ConfigError
from mlperf_opt.graph import Graph

Array = NDArray[Any]

_LEVELS = 256  # a random byte a number; the rate is kept to so many steps
_PLACING = ("learned_positions", "sinusoidal_positions")


def droppable(graph: Graph) -> dict[str, int]:
    """Return the values that dropout works on, with their widths: linear layers without an activation that an add reads, and
    the embedded tokens, with their positions where those are added."""
    embedded = {node.output for node in graph.nodes if node.op == "embedding"}
    placed = {node.output for node in graph.nodes if node.op in _PLACING and node.inputs[0] in embedded}
    bare = {name for name in embedded if not any(reader.output in placed for reader in graph.consumers(name))}
    added = {name for node in graph.nodes if node.op == "add" for name in node.inputs}
    found = [
        node.output
        for node in graph.nodes
        if node.output in placed | bare
        or (node.op == "linear" and node.output in added and not node.attributes.get("activation"))
    ]
    return {name: int(graph.specs[name].shape[-1]) for name in found}


def check_dropout(graph: Graph, rate: float) -> None:
    """Raise `ConfigError` where a rate above 0 would drop nothing."""
    if rate and not droppable(graph):
        raise ConfigError(f"train.dropout={rate}: {graph.name} has no residual branch to drop from; expected 0")


def factors(widths: dict[str, int], shape: tuple[int, ...], rate: float, seed: tuple[int, ...]) -> dict[str, Array]:
    """Return what each value is multiplied by: 0 or 1 / (1 - rate), float32 (*shape, width).

    Args:
        widths: from `droppable`.
        shape: of the tokens.
        rate: share of zeros, 0..1, kept to a 256th; 0 for no factors at all.
        seed: the factors depend on it alone.
    """
    dropped = round(rate * _LEVELS)
    if not dropped:
        return {}
    rng = np.random.default_rng(seed)
    scale = np.float32(_LEVELS / (_LEVELS - dropped))
    return {name: (rng.integers(0, _LEVELS, (*shape, width), np.uint8) >= dropped) * scale for name, width in widths.items()}
