"""Which token of those that are likely comes next: temperature, top_k, top_p."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import SessionError
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
        """Return what to draw from: logits (N, V) -> float64 (N, V), of each row at least one is not 0; their sum is 1.

        The temperature acts first, then top_k, then top_p on what is left of the probability.
        """
        shares = self._shares(logits)
        return shares / shares.sum(axis=1, keepdims=True)

    def _shares(self, logits: Array) -> Array:
        """What `probabilities` are in proportion to."""
        if self.temperature == 0:
            shares = np.zeros(logits.shape)
            shares[np.arange(len(logits)), greedy(logits)] = 1
            return shares
        scaled = logits.astype(np.float64)
        scaled -= scaled.max(axis=1, keepdims=True)
        scaled /= self.temperature
        shares = np.exp(scaled, out=scaled)
        if self.top_k or self.top_p < 1:
            for row, of_row in zip(logits, shares, strict=True):
                self._cut(row, of_row)
        return shares

    def _cut(self, logits: Array, shares: Array) -> None:
        """Set what is not drawn from to 0, in one row."""
        order = np.argsort(-logits, kind="stable")  # of equal ones the first
        kept = order[: self.top_k or len(order)]
        likely = shares[kept]
        likely /= likely.sum()
        before = np.cumsum(likely) - likely  # the first is always kept
        likely[before >= self.top_p] = 0
        shares[:] = 0
        shares[kept] = likely


def choose(settings: SamplingSettings, logits: Array, generators: Sequence[np.random.Generator]) -> Array:
    """Return a token for each row of logits (N, V), drawn by the row's own generator: int64 (N,).

    Raises:
        SessionError: NaN among a row's logits, or a largest one that is infinite; at temperature 0 nothing is asked of them.
    """
    if settings.temperature == 0:
        return greedy(logits)
    sums = settings._shares(logits).cumsum(axis=1)
    ends = sums[:, -1].tolist()
    if not all(map(math.isfinite, ends)):
        raise SessionError("the network's outputs are not finite, so there is no token to draw")
    drawn = [row.searchsorted(rng.random() * end, "right") for row, end, rng in zip(sums, ends, generators, strict=True)]
    return np.array(drawn, np.int64)
