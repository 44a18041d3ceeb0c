"""The session of a graph with state: positions, limits and truncation, the same for every runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError, SessionError
from mlperf_opt.graph import POSITION, Graph
from mlperf_opt.ops import embedding

Array = NDArray[Any]
_TOKEN = np.dtype(np.int64)  # what every runtime takes
Run = Callable[[Array, Array, list[Array]], tuple[Array, list[Array]]]


class StateSession:
    """Implements `Session` over one function of a runtime.

    ``run(tokens (N, T), lengths (N,), state) -> (logits (N, T, V), next state)`` may reuse ``state``, a list in the order of
    the graph's states, and its buffers.
    A runtime that keeps its caches in another layout gives the fresh ``state``, for `places` tokens.

    With a window the caches are rings of sinks + window places. What would overwrite a place that an earlier token of the
    same call still needs goes in by itself: one call with tokens up to where the ring is full, then one for each token.
    """

    def __init__(self, graph: Graph, batch: int, max_length: int, run: Run, state: list[Array] | None = None) -> None:
        check_limits(graph, batch, max_length)
        self._graph = graph
        self._window = graph.window
        self._places = places(graph, max_length)
        self._position = [s.name for s in graph.state].index(POSITION)
        self._state = zero_state(graph, batch, self._places) if state is None else state
        self._max_length = max_length
        self._batch = batch
        self._run = run
        self._ones = np.ones(batch, np.int64)
        self._room = max_length  # tokens that the fullest row can still take, at least

    @property
    def positions(self) -> Array:
        return self._state[self._position].copy()

    @property
    def state_bytes(self) -> int:
        return sum(array.nbytes for array in self._state)

    def prefill(self, tokens: Array, lengths: Array | None = None) -> Array:
        if tokens.ndim != 2 or len(tokens) != self._batch:
            raise SessionError(f"prefill takes tokens ({self._batch}, T), got {tokens.shape}")
        time = tokens.shape[1]
        if time < 1:
            raise SessionError("the prompt is empty: it must hold at least one token")
        counts = np.full(self._batch, time, np.int64) if lengths is None else np.asarray(lengths, np.int64, order="C")
        if counts.shape != (self._batch,):
            raise SessionError(f"prefill takes one length per row ({self._batch}), got {counts.shape}")
        for row, count in enumerate(counts.tolist()):
            if not 1 <= count <= time:
                raise SessionError(f"row {row}: a prompt of {count} tokens; expected 1 to {time}")
        # what lies behind the longest row is padding: it costs time, and a runtime has no room for more than the cache
        logits = self._advance(tokens[:, : int(counts.max())], counts)  # (N, T, V)
        return logits[np.arange(self._batch), counts - 1]

    def decode(self, tokens: Array) -> Array:
        if tokens.shape != (self._batch,):
            raise SessionError(f"decode takes one token per row ({self._batch}), got {tokens.shape}")
        return self._advance(tokens[:, None], self._ones)[:, 0]

    def truncate(self, length: int | Array) -> None:
        position = self._state[self._position]
        given = np.asarray(length, np.int64)
        if given.shape not in ((), position.shape):
            raise SessionError(f"truncate takes one length, or one per row ({self._batch}), got {given.shape}")
        wanted = given.tolist() if given.ndim else [given.item()] * self._batch
        for row, (want, have) in enumerate(zip(wanted, position.tolist(), strict=True)):
            if not 0 <= want <= have:
                raise SessionError(f"row {row}: can't truncate to {want} tokens; it holds {have}")
            if self._window and have > self._places and self._window[0] < want < have:
                expected = f"0 to {self._window[0]}, the sinks, or all {have}"
                raise SessionError(f"row {row}: what {want} tokens would see has left the window; expected {expected}")
        # What lies behind a position is never read, so moving the position is all there is to do.
        position[:] = given
        self._room = self._max_length - max(wanted)

    def _advance(self, tokens: Array, lengths: Array) -> Array:
        if tokens.dtype is not _TOKEN:
            if tokens.dtype.kind not in "iu":
                raise SessionError(f"tokens are whole numbers, got {tokens.dtype}")
            tokens = tokens.astype(_TOKEN, copy=False)
        # What a step of one token needs is counted in Python: a ufunc between two steps is far from the CPU's caches. And it
        # is counted first: Ctrl-C may come when positions have moved. Where there seems to be no room it is counted anew.
        time = tokens.shape[1]
        self._room = self._room - 1 if time == 1 and self._room else self._room_behind(lengths)
        if self._window and time > 1 and self._max_length - self._room > self._places:
            return self._in_pieces(tokens, lengths)
        logits, self._state = self._run(tokens, lengths, self._state)
        return logits

    def _room_behind(self, lengths: Array) -> int:
        """Return what `_room` is after so many more tokens in each row, or raise `SessionError`."""
        position = self._state[self._position]
        after = position + lengths
        if after.max() > self._max_length:
            row = int(after.argmax())
            held = f"row {row} holds {position[row]} of {self._max_length} tokens"
            raise SessionError(f"the cache is full: {held}, {lengths[row]} more don't fit")
        return self._max_length - int(after.max())

    def _in_pieces(self, tokens: Array, lengths: Array) -> Array:
        """`_run`, as many tokens at a time as no row's ring loses one for that a token of the same piece still sees."""
        check_tokens(self._graph, tokens)  # all before the first piece moves the state
        done, pieces = 0, []
        while done < tokens.shape[1]:
            room = self._places - int(self._state[self._position].max())
            size = max(1, min(room, tokens.shape[1] - done))
            counts = np.clip(lengths - done, 0, size)
            logits, self._state = self._run(tokens[:, done : done + size], counts, self._state)
            pieces.append(logits)
            done += size
        return np.concatenate(pieces, axis=1)


def check_tokens(graph: Graph, tokens: Array) -> None:
    """Raise `GraphError` unless the graph knows every token, and as many places as there are tokens in a row.

    The places of a graph with state are its session's business.
    """
    for node in graph.nodes:
        if node.op in ("embedding", "qembedding"):
            embedding.check_tokens(tokens, int(graph.specs[node.argument("table")].shape[0]))
    if not graph.state and graph.context is not None and tokens.shape[1] > graph.context:
        raise GraphError(f"positions: {tokens.shape[1]} tokens, but the model knows {graph.context} places")


def places(graph: Graph, max_length: int) -> int:
    """Return how many tokens a cache keeps at once, for rows of ``max_length``."""
    return max_length if graph.window is None else min(max_length, sum(graph.window))


def zero_state(graph: Graph, batch: int, places: int) -> list[Array]:
    """Return the state of ``batch`` rows that hold nothing yet, with room for ``places`` tokens each."""
    dims = {"N": batch, "L": places}
    specs = [state.spec.bound(dims) for state in graph.state]
    return [np.zeros(tuple(map(int, spec.shape)), spec.dtype) for spec in specs]


def check_limits(graph: Graph, batch: int, max_length: int) -> None:
    """Raise `SessionError` unless the graph has state and can hold ``batch`` rows of ``max_length`` tokens."""
    if not graph.state:
        raise SessionError(f"{graph.name} has no cache to start a session with: add kv_cache to the passes")
    if batch < 1:
        raise SessionError(f"a batch of {batch}: expected at least 1")
    context = graph.limit
    if max_length < 1 or (context is not None and max_length > context):
        expected = "at least 1" if context is None else f"1 to {context}, the context of {graph.name}"
        raise SessionError(f"max_length={max_length}: expected {expected}")
