"""Generation of text: which token comes next, for rows of different lengths, with or without a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import SessionError
from mlperf_opt.runtimes import Executable
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
        return logits.argmax(axis=-1)
    sums = (np.cumsum(settings.probabilities(row)) for row in logits)
    return np.array(
        [int(np.searchsorted(total, rng.random() * total[-1], "right")) for total, rng in zip(sums, generators, strict=True)]
    )


def continuations(
    executable: Executable, prompts: Sequence[Array], count: int, pick: Callable[[Array], Array]
) -> Iterator[Array]:
    """Yield the next token of each row, int64 (N,), ``count`` times.

    Rows are computed together, whatever the lengths of their prompts: padding stands behind a row, where causal attention
    and a cache with a position for each row never look.

    Args:
        executable: tokens (N, T) -> logits (N, T, V); a graph with a cache is stepped, another one computed anew each time.
        prompts: ids of each row, at least one.
        count: tokens to add; with them no row may be longer than the model's context plus one.
        pick: logits (N, V) -> tokens (N,).

    Raises:
        SessionError: more tokens than that.
    """
    rows = np.arange(len(prompts))
    lengths = np.array([len(prompt) for prompt in prompts])
    tokens = np.zeros((len(prompts), int(lengths.max()) + count), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    longest, context = int(lengths.max()), executable.graph.context
    if context is not None and longest + count - 1 > context:
        raise SessionError(f"{longest} tokens and {count} more don't fit the context of {context} tokens")
    if executable.graph.state:
        session = executable.start(len(prompts), longest + count - 1)
        chosen = pick(session.prefill(tokens[:, :longest], lengths))
        yield chosen
        for _ in range(count - 1):
            chosen = pick(session.decode(chosen))
            yield chosen
        return
    for step in range(count):
        logits = executable(tokens[:, : longest + step])
        chosen = pick(logits[rows, lengths + step - 1])
        tokens[rows, lengths + step] = chosen
        yield chosen
