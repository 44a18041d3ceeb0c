"""MinimalTransformer: a causal decoder with pre-norm blocks (Vaswani, arXiv:1706.03762; Radford et al., GPT-2, 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlperf_opt.graph import Graph, GraphBuilder
from mlperf_opt.networks.initial import normal, ones, zeros
from mlperf_opt.settings import require

_EPS = 1e-5


@dataclass(frozen=True)
class MinimalTransformer:
    """Token embedding, positions, then per layer x + attention(norm(x)) and x + mlp(norm(x)), a last norm and the logits.

    Attributes:
        vocabulary, context, layers, dim, heads, hidden: sizes; hidden is the width of the mlp.
        positions: learned or sinusoidal (added to the embedding), or rotary (queries and keys are turned).
        kv_heads: heads of keys and values, each for heads / kv_heads of the queries'; None: as many as heads.
        tied: the embedding's table is the weight of the logits too (Press and Wolf, arXiv:1608.05859).
    """

    vocabulary: int = 27
    context: int = 16
    layers: int = 2
    dim: int = 32
    heads: int = 2
    hidden: int = 128
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    kv_heads: int | None = None
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "layers", "dim", "heads", "hidden"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number >= 1")
        require(self.dim % self.heads == 0, "heads", self.heads, f"a divisor of dim={self.dim}")
        shared = self.kv_heads is None or (self.kv_heads >= 1 and self.heads % self.kv_heads == 0)
        require(shared, "kv_heads", self.kv_heads, f"a divisor of heads={self.heads}")
        even = self.positions != "rotary" or self.dim // self.heads % 2 == 0
        require(even, "positions", self.positions, f"an even number of dim={self.dim} for each of heads={self.heads}")

    def build(self, name: str, rng: np.random.Generator) -> Graph:
        """Return the initialised graph: tokens int64 (N, T), T <= context -> logits (N, T, vocabulary)."""
        build = GraphBuilder(name)
        deviation = 1 / math.sqrt(self.dim)
        residual = deviation / math.sqrt(2 * self.layers)

        def linear(node: str, x: str, units: int, inputs: int, spread: float) -> str:
            return build.node("linear", node, x, weight=normal(rng, (units, inputs), spread), bias=zeros(units))

        def norm(node: str, x: str) -> str:
            return build.node("layer_norm", node, x, gamma=ones(self.dim), beta=zeros(self.dim), eps=_EPS)

        tokens = build.input("tokens", ("N", "T"), "int64")
        x = build.node("embedding", "embed", tokens, table=normal(rng, (self.vocabulary, self.dim), deviation))
        if self.positions == "learned":
            x = build.node("learned_positions", "positions", x, table=normal(rng, (self.context, self.dim), deviation))
        elif self.positions == "sinusoidal":
            x = build.node("sinusoidal_positions", "positions", x, context=self.context)
        width = self.dim // self.heads
        keys = width * (self.kv_heads or self.heads)
        for layer in range(1, self.layers + 1):
            at = f"layer{layer}"
            y = norm(f"{at}.norm1", x)
            parts = {"query": self.dim, "key": keys, "value": keys}
            q, k, v = (linear(f"{at}.{part}", y, units, self.dim, deviation) for part, units in parts.items())
            if self.positions == "rotary":
                q, k = (build.node("rotary", f"{x}.rotary", x, width=width, context=self.context) for x in (q, k))
            y = build.node("attention", f"{at}.attention", q, k, v, heads=self.heads, causal=True)
            x = build.node("add", f"{at}.add1", x, linear(f"{at}.project", y, self.dim, self.dim, residual))
            y = norm(f"{at}.norm2", x)
            y = build.node("gelu", f"{at}.gelu", linear(f"{at}.up", y, self.hidden, self.dim, deviation))
            down = linear(f"{at}.down", y, self.dim, self.hidden, residual * math.sqrt(self.dim / self.hidden))
            x = build.node("add", f"{at}.add2", x, down)
        x = norm("norm", x)
        if self.tied:
            return build.finish(build.node("linear", "logits", x, "embed.table", bias=zeros(self.vocabulary)))
        return build.finish(linear("logits", x, self.vocabulary, self.dim, deviation))
