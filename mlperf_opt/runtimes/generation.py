"""Greedy completion of prompts, with a cache where the graph has one, by recomputing everything where it has not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import SessionError
from mlperf_opt.runtimes.base import Executable

Array = NDArray[Any]


def greedy(executable: Executable, prompts: Array, count: int) -> Iterator[Array]:
    """Yield the most likely next tokens (N,) ``count`` times: the first after the prompt, each other after one step more.

    Args:
        executable: tokens (N, T) -> logits (N, T, V).
        prompts: (N, P) token ids, all of one length.
        count: tokens to add.

    Raises:
        SessionError: an empty prompt, nothing to add, or more tokens than the model's context.
    """
    rows, length = prompts.shape
    context = executable.graph.limit
    if length < 1:
        raise SessionError("the prompt is empty: it must hold at least one token")
    if count < 1:
        raise SessionError(f"count={count}: expected at least 1 token to add")
    # The last token is only returned, never fed back, so it needs no place.
    places = length + count - 1
    if context is not None and places > context:
        raise SessionError(f"{length} tokens and {count} more don't fit the context of {context} tokens")
    if executable.graph.state:
        session = executable.start(rows, places)
        tokens = session.prefill(prompts).argmax(axis=-1)
        yield tokens
        for _ in range(count - 1):
            tokens = session.decode(tokens).argmax(axis=-1)
            yield tokens
        return
    sequence = np.empty((rows, length + count), prompts.dtype)
    sequence[:, :length] = prompts
    for end in range(length, length + count):
        sequence[:, end] = executable(sequence[:, :end])[:, -1].argmax(axis=-1)
        yield sequence[:, end]


def complete(executable: Executable, prompts: Array, count: int) -> Array:
    """Return the (N, count) tokens that `greedy` yields."""
    return np.stack(list(greedy(executable, prompts, count)), axis=1)


def stepwise(executable: Executable, tokens: Array) -> Array:
    """Return the logits (N, T, V) of whole sequences (N, T), token by token where the graph has a cache.

    Whatever a cache does wrong shows as a difference to the graph without it.
    """
    if not executable.graph.state:
        return executable(tokens)
    session = executable.start(*tokens.shape)
    first = session.prefill(tokens[:, :1])
    return np.stack([first, *(session.decode(tokens[:, t]) for t in range(1, tokens.shape[1]))], axis=1)
