"""The networks, by family in `FAMILIES`: a frozen dataclass of sizes whose ``build`` makes the graph."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mlperf_opt.graph import Graph
from mlperf_opt.networks.digit_mlp import DigitMLP
from mlperf_opt.networks.minimal_transformer import MinimalTransformer
from mlperf_opt.networks.simple_cnn import SimpleCNN


class Network(Protocol):
    """Sizes of a network; ``build`` initialises it."""

    def build(self, name: str, rng: np.random.Generator) -> Graph:
        """Return the graph under that name, its weights drawn from ``rng``."""
        ...


FAMILIES: dict[str, type[Network]] = {
    "DigitMLP": DigitMLP,
    "SimpleCNN": SimpleCNN,
    "MinimalTransformer": MinimalTransformer,
}

__all__ = ["FAMILIES", "DigitMLP", "MinimalTransformer", "Network", "SimpleCNN"]
