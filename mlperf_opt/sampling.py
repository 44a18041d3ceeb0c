"""Which token of those that are likely comes next: temperature, top_k, top_p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.runtimes import greedy
from mlperf_opt.settings import require

Array = NDArray[Any]


@dataclass(frozen=True)
class SamplingSettings:
    """How text is generated.

    Attributes:
        length: tokens to add to each prompt, at the most.
        temperature: 0 takes the most likely token, 1 draws by the model's probabilities, more is more even.
        top_k: only so many of the most likely tokens are drawn from; 0 for all.
        top_p: only the most likely tokens that together have this probability (Holtzman et al., arXiv:1904.09751).
    """

    length: int = 200
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require(self.length >= 1, "length", self.length, "a whole number >= 1")
        legal = self.temperature == 0 or 0.01 <= self.temperature <= 100
        require(legal, "temperature", self.temperature, "0, or 0.01 to 100")
        require(self.top_k >= 0, "top_k", self.top_k, "a whole number >= 0")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "more than 0, at most 1")

    def probabilities(self, logits: Array) -> Array:
        """Return what to draw from: logits (V,) -> float64 (V,), of which at least one is not 0; their sum is 1.

        The temperature acts first, then top_k, then top_p on what is left of the probability.
        """
        order = np.argsort(-logits, kind="stable")  # of equal ones the first
        scaled = logits[order].astype(np.float64)
        kept = self.top_k or len(scaled)
        if self.temperature == 0:
            kept, scaled = 1, scaled - scaled[0]
        else:
            scaled = (scaled - scaled[0]) / self.temperature
        shares = np.exp(scaled[:kept])
        shares /= shares.sum()
        before = np.cumsum(shares) - shares  # the first is always kept
        shares[before >= self.top_p] = 0
        found = np.zeros(len(logits))
        found[order[:kept]] = shares / shares.sum()
        return found


def choose(settings: SamplingSettings, logits: Array, generators: Sequence[np.random.Generator]) -> Array:
    """Return a token for each row of logits (N, V), drawn by the row's own generator: int64 (N,)."""
    if settings.temperature == 0:
        return greedy(logits)
    sums = (np.cumsum(settings.probabilities(row)) for row in logits)
    return np.array(
        [int(np.searchsorted(total, rng.random() * total[-1], "right")) for total, rng in zip(sums, generators, strict=True)]
    )
