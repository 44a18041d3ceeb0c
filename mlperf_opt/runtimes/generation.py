"""Going on with token rows, with a cache where the graph has one, by recomputing everything where it has not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import SessionError
from mlperf_opt.runtimes.base import Executable

Array = NDArray[Any]
Pick = Callable[[Array], Array]  # logits (N, V) -> tokens (N,)

_SAMPLES = 500  # in one call; of sequences it is the tokens that count
_TOKENS = 8_192


def greedy(logits: Array) -> Array:
    """Return the most likely token of each row of logits (N, V), of equal ones the first: int64 (N,)."""
    return logits.argmax(axis=-1)


def continuations(
    executable: Executable, prompts: Array, count: int, *, lengths: Array | None = None, pick: Pick = greedy
) -> Iterator[Array]:
    """Yield the next token of each row, int64 (N,), ``count`` times: the first after its prompt, each other after one more.

    Rows are computed together, whatever the lengths of their prompts: padding stands behind a row, where causal attention
    and a cache with a position for each row never look.

    Args:
        executable: tokens (N, T) -> logits (N, T, V); a graph with a cache is stepped, another one computed anew each time.
        prompts: (N, P) token ids; behind a row that is shorter than the longest, any.
        count: tokens to add.
        lengths: (N,) tokens of each prompt; None where all have P.
        pick: what takes a token from each row's logits.

    Raises:
        SessionError: an empty prompt, a length beyond P, nothing to add, or more tokens than the model's context.
    """
    rows, longest = prompts.shape
    context = executable.graph.limit
    if longest < 1 or (lengths is not None and lengths.min() < 1):
        raise SessionError("the prompt is empty: it must hold at least one token")
    if lengths is not None and lengths.max() > longest:
        raise SessionError(f"a prompt of {lengths.max()} tokens; expected 1 to {longest}")
    if count < 1:
        raise SessionError(f"count={count}: expected at least 1 token to add")
    # The last token is only returned, never fed back, so it needs no place.
    places = longest + count - 1
    if context is not None and places > context:
        raise SessionError(f"{longest} tokens and {count} more don't fit the context of {context} tokens")
    if executable.graph.state:
        session = executable.start(rows, places)
        tokens = pick(session.prefill(prompts, lengths))
        yield tokens
        for _ in range(count - 1):
            tokens = pick(session.decode(tokens))
            yield tokens
        return
    sequence = np.zeros((rows, longest + count), prompts.dtype)
    sequence[:, :longest] = prompts
    row, end = (slice(None), longest) if lengths is None else (np.arange(rows), lengths)
    for step in range(count):
        logits = executable(sequence[:, : longest + step])
        sequence[row, end + step] = pick(logits[row, end + step - 1])
        yield sequence[row, end + step]


def complete(executable: Executable, prompts: Array, count: int) -> Array:
    """Return the most likely ``count`` tokens behind prompts (N, P) of one length, each after all before it: (N, count)."""
    return np.stack(list(continuations(executable, prompts, count)), axis=1)


def rows_at_once(inputs: Array) -> int:
    """Return how many of the samples ``inputs`` (N, ...) one call is given: more take memory, and are no faster.

    Of sequences so many as have 8,192 tokens: attention takes memory by the square of their length, a cache by their number.
    """
    return max(1, _TOKENS // inputs.shape[1]) if inputs.dtype.kind == "i" else _SAMPLES


def stepwise(executable: Executable, inputs: Array) -> Array:
    """Return the logits of all samples, `rows_at_once`; those of whole sequences token by token where the graph has a cache.

    Whatever a cache does wrong shows as a difference to the graph without it.

    Args:
        executable: of a graph with one output.
        inputs: (N, ...) of the graph's input, N at least 1; sequences are (N, T).

    Returns:
        (N, ...), of sequences (N, T, V).
    """
    size = rows_at_once(inputs)
    part = _stepped(executable, inputs[:size])
    logits = np.empty((len(inputs), *part.shape[1:]), part.dtype)
    logits[:size] = part
    for start in range(size, len(inputs), size):
        logits[start : start + size] = _stepped(executable, inputs[start : start + size])
    return logits


def _stepped(executable: Executable, tokens: Array) -> Array:
    if not executable.graph.state:
        return executable(tokens)
    session = executable.start(*tokens.shape)
    first = session.prefill(tokens[:, :1])
    return np.stack([first, *(session.decode(tokens[:, t]) for t in range(1, tokens.shape[1]))], axis=1)
