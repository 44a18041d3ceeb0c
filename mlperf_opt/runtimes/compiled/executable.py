"""Programs made ready to run: memory, threads, sessions."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import LENGTHS, POSITION, Graph, fuse_graph
from mlperf_opt.kernels import machine
from mlperf_opt.runtimes.base import Isa, Observer, RuntimeOptions, Sparse
from mlperf_opt.runtimes.compiled.attention_ops import in_panels, padded, state_shape
from mlperf_opt.runtimes.compiled.lowerings import LOWERINGS
from mlperf_opt.runtimes.compiled.observe import observe
from mlperf_opt.runtimes.compiled.program import Program
from mlperf_opt.runtimes.compiled.worker import Worker, aligned_bytes
from mlperf_opt.runtimes.session import Run, StateSession, check_limits, check_tokens, places

Array = NDArray[Any]
# Rows of a chunk: activations of about this size stay in the second-level cache; 96 rows are whole tiles of 12 and of 32.
_CACHE_BYTES = 768 * 1024
_LEAST_ROWS, _MOST_ROWS = 16, 288
_WHOLE_TILES = 96
_WORTH_THREADS = 10_000_000  # multiply-accumulates of a call: with fewer, handing over costs more than is won


class _Own(threading.local):
    """The memory of the thread that asks: calls from several threads, ours or the user's, don't meet."""

    def __init__(self, program: Program, constants: Array) -> None:
        self.rows = program.rows
        self._worker = Worker(program, constants)
        self.address = self._worker.address


def _run(own: _Own, x: int, out: int, first: int, last: int, time: int) -> bool:
    return machine.run(own.address, x, out, 0, 0, first, last, time)


class CompiledExecutable:
    """A graph lowered once; a call is one native call (one a thread). It can be called from several threads at once."""

    def __init__(self, graph: Graph, options: RuntimeOptions) -> None:
        self.graph = graph
        self._fused = fuse_graph(graph).graph  # what runs; `observe` tells of the nodes of the graph as it was given
        self._threads = options.threads
        self._isa: Isa = options.isa
        self._sparse: Sparse = options.sparse
        self._spec = graph.specs[graph.outputs[0]]
        self._timed = "T" in next(iter(graph.inputs.values())).shape
        self._inputs = [name for name in graph.inputs if name != LENGTHS]
        if len(self._inputs) != 1:
            raise GraphError(f"the compiled runtime takes graphs of one input, {graph.name} has {len(self._inputs)}")
        self._input = graph.inputs[self._inputs[0]]
        # what a call needs, looked up once
        self._leading = 2 if self._timed else 1
        self._dtype, self._axes = np.dtype(self._input.dtype), len(self._input.shape)
        self._row = self._input.shape[self._leading :]
        self._out_row = tuple(int(d) for d in self._spec.shape[self._leading :])
        self._out_dtype = np.dtype(self._spec.dtype)
        self._out_count = math.prod(self._out_row)
        self._states = [(state.name, state.spec, in_panels(graph, state.name)) for state in graph.state]
        self._is_rows = not self._timed and not graph.state and self._spec.dtype == "float32" == self._input.dtype
        self._preparing = threading.Lock()
        self._row_macs = graph.macs({"N": 1, "T": 1, "L": 1})
        self._prepare(self._rows())

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads)

    def _rows(self) -> int:
        """Rows of a chunk: what their activations take stays in the cache."""
        if self._timed:
            return max(_LEAST_ROWS, self.graph.context or 256)
        widest = max(
            math.prod(int(d) for d in self._fused.specs[node.output].shape if not isinstance(d, str))
            for node in self._fused.nodes
        )
        rows = _CACHE_BYTES // (8 * widest)
        step = _WHOLE_TILES if rows >= _WHOLE_TILES else _LEAST_ROWS
        return int(np.clip(rows // step * step, _LEAST_ROWS, _MOST_ROWS))

    def _prepare(self, rows: int) -> None:
        self._program = Program(self._fused, rows, LOWERINGS, self._isa, self._sparse)
        self._constants = aligned_bytes(self._program.constants.nbytes)
        self._constants[:] = self._program.constants
        self._own = _Own(self._program, self._constants)

    @property
    def notes(self) -> Mapping[str, str]:
        return self._program.notes

    @property
    def workspace_bytes(self) -> int:
        return self._threads * self._program.arena.size

    def __call__(self, *inputs: Array) -> Array:
        # The checks stand here and not in a method: for a small network a call of that costs as much as a layer.
        if len(inputs) != 1:
            self._checked(inputs)
        x = inputs[0]
        if x.dtype != self._dtype or x.ndim != self._axes or x.shape[self._leading :] != self._row:
            self._checked(inputs)
        if self._is_rows and (self._threads == 1 or len(x) <= self._program.rows):
            rows = len(x)
            out = np.empty(rows * self._out_count, np.float32)
            machine.run_arrays(self._own.address, x.ravel(), out, 0, rows, 1)
            return out.reshape(rows, *self._out_row)
        if self.graph.state:
            rows, length = x.shape
            check_limits(self.graph, rows, length)
            state = self._state(rows, length)
            return self._bind(rows, length, state)(x, np.full(rows, length, np.int64), list(state.values()))[0]
        sequences, time = (x.shape[0], x.shape[1]) if self._timed else (len(x), 1)
        if self.graph.context is not None and time > self.graph.context:
            check_tokens(self.graph, x)  # says it
        given, out = np.ascontiguousarray(x), np.empty((*x.shape[: self._leading], *self._out_row), self._out_dtype)
        if not self._spread(given.ctypes.data, out.ctypes.data, sequences, time):
            check_tokens(self.graph, x)  # says which
        return out

    def _checked(self, inputs: tuple[Array, ...]) -> Array:
        """Return the input, or say what is wrong with it."""
        if len(inputs) != 1:
            raise GraphError(f"{self.graph.name} takes 1 inputs, got {len(inputs)}")
        (x,) = inputs
        if x.dtype != self._dtype or x.ndim != self._axes or x.shape[self._leading :] != self._row:
            raise GraphError(f"{self.graph.name} takes {self._inputs[0]}: {self._input}, got {x.dtype}{list(x.shape)}")
        return x

    def _spread(self, x: int, out: int, sequences: int, time: int) -> bool:
        """Run whole chunks on all threads (a batch is cut alike for any number of them), from an address to an address.

        False for an unknown token.
        """
        with self._preparing:
            if time > self._own.rows:
                self._prepare(padded(time))
        own = self._own  # another thread may prepare for longer sequences meanwhile
        chunk = max(1, own.rows // max(time, 1))
        share = max(1, math.ceil(math.ceil(sequences / chunk) / self._threads)) * chunk
        bounds = [(first, min(first + share, sequences)) for first in range(0, sequences, share)]
        if len(bounds) <= 1 or sequences * time * self._row_macs < _WORTH_THREADS:
            return _run(own, x, out, 0, sequences, time)
        jobs = [self._pool.submit(_run, own, x, out, first, last, time) for first, last in bounds]
        known = [job.result() for job in jobs]  # every one, so that no thread is left running
        return all(known)

    def observe(self, observer: Observer, *inputs: Array) -> Array:
        x = self._checked(inputs)
        if self._dtype.kind == "i":
            check_tokens(self.graph, x)
        if self.graph.state:
            check_limits(self.graph, *x.shape)
        rows = math.prod(x.shape[:2]) if self._timed else len(x)
        program = Program(self.graph, padded(max(rows, 1)), LOWERINGS, self._isa, self._sparse)
        return observe(self.graph, program, self._state(*x.shape[:2]) if self.graph.state else {}, x, observer)

    def start(self, batch: int, max_length: int) -> StateSession:
        check_limits(self.graph, batch, max_length)
        length = places(self.graph, max_length)
        state = self._state(batch, length)
        return StateSession(self.graph, batch, max_length, self._bind(batch, length, state), list(state.values()))

    def _state(self, batch: int, length: int) -> dict[str, Array]:
        """A fresh state with that many places, in the graph's order: positions, and caches as the kernels keep them."""
        return {
            name: np.zeros(batch, np.int64)
            if name == POSITION
            else np.zeros(state_shape(spec, panels, batch, length), spec.dtype)
            for name, spec, panels in self._states
        }

    def _bind(self, batch: int, length: int, state: dict[str, Array]) -> Run:
        """Return a function that runs the program on that state."""
        with self._preparing:
            if length > self._program.rows:
                self._prepare(padded(length))
            worker, chunk = Worker(self._program, self._constants, state, length), self._program.rows
        vocabulary, position = self._out_row[-1], list(state).index(POSITION)

        # A step's weights throw what Python needs out of the CPU's caches, so that each call of numpy's costs microseconds:
        # the arrays of one token are made once, and addresses are asked for where an array is another one than before.
        token, made = np.zeros((batch, 1), np.int64), np.zeros((batch, 1, vocabulary), np.float32)
        token_at, made_at = token.ctypes.data, made.ctypes.data
        here = added = token
        held = new = 0

        def run(tokens: Array, lengths: Array, now: list[Array]) -> tuple[Array, list[Array]]:
            nonlocal here, added, held, new
            if now[position] is not here:
                here = now[position]
                held = here.ctypes.data
            if lengths is not added:
                added, new = lengths, lengths.ctypes.data
            rows, time = tokens.shape
            if self.graph.window and rows * time > chunk:
                check_tokens(self.graph, tokens)  # before a chunk writes over what the ring would still hold
            if time == 1:
                token[:] = tokens
                known = machine.run(worker.address, token_at, made_at, new, held, 0, rows, 1)
                out = made.copy()
            else:
                out, x = np.empty((rows, time, vocabulary), np.float32), tokens.ravel()
                known = machine.run(worker.address, x.ctypes.data, out.ctypes.data, new, held, 0, rows, time)
            if not known:
                check_tokens(self.graph, tokens)  # says which
            return out, now

        return run
