"""Programs made ready to run: memory, threads, sessions."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import LENGTHS, POSITION, Graph, fuse_graph
from mlperf_opt.kernels import machine
from mlperf_opt.runtimes.base import Observer, RuntimeOptions
from mlperf_opt.runtimes.compiled.attention_ops import padded, state_floats
from mlperf_opt.runtimes.compiled.lowerings import LOWERINGS
from mlperf_opt.runtimes.compiled.observe import observe
from mlperf_opt.runtimes.compiled.program import Program
from mlperf_opt.runtimes.compiled.worker import Worker, aligned_bytes
from mlperf_opt.runtimes.session import Run, StateSession, check_limits

Array = NDArray[Any]
_CACHE_BYTES = 256 * 1024  # activations of a chunk: they stay in the second-level cache beside weights
_LEAST_ROWS, _MOST_ROWS = 16, 256
_NO_PLACES = np.zeros(1, np.int64)
_NO_PLACES.setflags(write=False)


class CompiledExecutable:
    """A graph lowered once; a call is one native call (one a thread)."""

    def __init__(self, graph: Graph, options: RuntimeOptions) -> None:
        self.graph = graph
        self._fused = fuse_graph(graph).graph  # what runs; `observe` tells of the nodes of the graph as it was given
        self._threads = options.threads
        self._portable = options.isa == "portable"
        self._spec = graph.specs[graph.outputs[0]]
        self._timed = "T" in next(iter(graph.inputs.values())).shape
        self._row = tuple(int(d) for d in self._spec.shape if not isinstance(d, str))  # shape of a row of the output
        self._inputs = [name for name in graph.inputs if name != LENGTHS]
        if len(self._inputs) != 1:
            raise GraphError(f"the compiled runtime takes graphs of one input, {graph.name} has {len(self._inputs)}")
        self._input = graph.inputs[self._inputs[0]]
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
        return int(np.clip(rows // _LEAST_ROWS * _LEAST_ROWS, _LEAST_ROWS, _MOST_ROWS))

    def _prepare(self, rows: int) -> None:
        self._program = Program(self._fused, rows, LOWERINGS, portable=self._portable)
        self._constants = aligned_bytes(self._program.constants.nbytes)
        self._constants[:] = self._program.constants
        self._workers = [Worker(self._program, self._constants) for _ in range(self._threads)]
        self._first = self._workers[0].address

    @property
    def workspace_bytes(self) -> int:
        return self._threads * self._program.arena.size

    def __call__(self, *inputs: Array) -> Array:
        x = self._check(inputs)
        if self.graph.state:
            rows, length = x.shape
            check_limits(self.graph, rows, length)
            state = self._state(rows, length)
            return self._bind(rows, length, state)(x, np.full(rows, length, np.int64), state)[0]
        if not self._timed:
            out = np.empty((len(x), *self._row), np.float32)
            if self._threads == 1 or len(x) <= self._program.rows:
                machine.run(self._first, x.ravel(), out.reshape(-1), _NO_PLACES, _NO_PLACES, 0, len(x), 1)
                return out
            return self._spread(x.ravel(), out, len(x), 1)
        return self._spread(x.ravel().view(np.float32), self._room(x), *x.shape)

    def _room(self, x: Array) -> Array:
        dims = dict(zip(self._input.shape, x.shape, strict=False))
        shape = self._spec.bound({name: size for name, size in dims.items() if isinstance(name, str)}).shape
        return np.empty(tuple(map(int, shape)), self._spec.dtype)

    def _spread(self, x: Array, out: Array, sequences: int, time: int) -> Array:
        """Run whole chunks on all threads; how a batch is cut doesn't depend on their number."""
        if time > self._program.rows:
            self._prepare(padded(time))
        flat = out.reshape(-1)
        chunk = max(1, self._program.rows // max(time, 1))
        chunks = -(-sequences // chunk)
        share = -(-chunks // self._threads) * chunk
        bounds = [(first, min(first + share, sequences)) for first in range(0, sequences, share)]
        if len(bounds) <= 1:
            machine.run(self._first, x, flat, _NO_PLACES, _NO_PLACES, 0, sequences, time)
            return out
        jobs = [
            self._pool.submit(machine.run, worker.address, x, flat, _NO_PLACES, _NO_PLACES, first, last, time)
            for worker, (first, last) in zip(self._workers, bounds, strict=False)
        ]
        for job in jobs:
            job.result()
        return out

    def observe(self, observer: Observer, *inputs: Array) -> Array:
        x = np.ascontiguousarray(self._check(inputs))
        rows = math.prod(x.shape[:2]) if self._timed else len(x)
        program = Program(self.graph, padded(rows), LOWERINGS, portable=self._portable)
        return observe(self.graph, program, self._state(*x.shape[:2]) if self.graph.state else {}, x, observer)

    def start(self, batch: int, max_length: int) -> StateSession:
        check_limits(self.graph, batch, max_length)
        state = self._state(batch, max_length)
        return StateSession(self.graph, batch, max_length, self._bind(batch, max_length, state), state)

    def _state(self, batch: int, length: int) -> dict[str, Array]:
        """A fresh state: positions, and caches as the kernels keep them."""
        return {
            state.name: np.zeros(batch, np.int64)
            if state.name == POSITION
            else np.zeros(state_floats(self.graph, state, batch, length), np.float32)
            for state in self.graph.state
        }

    def _bind(self, batch: int, length: int, state: dict[str, Array]) -> Run:
        """Return a function that runs the program on that state."""
        if length > self._program.rows:
            self._prepare(padded(length))
        worker = Worker(self._program, self._constants, state, length)
        vocabulary = self._row[-1]

        def run(tokens: Array, lengths: Array, now: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
            rows, time = tokens.shape
            out = np.empty((rows, time, vocabulary), np.float32)
            flat = tokens.ravel().view(np.float32)
            machine.run(worker.address, flat, out.reshape(-1), lengths, now[POSITION], 0, rows, time)
            return out, {**now, POSITION: now[POSITION] + lengths}

        return run

    def _check(self, inputs: tuple[Array, ...]) -> Array:
        if len(inputs) != 1:
            raise GraphError(f"{self.graph.name} takes 1 inputs, got {len(inputs)}")
        x = inputs[0]
        if x.dtype != self._input.dtype or x.ndim != len(self._input.shape):
            raise GraphError(f"{self.graph.name} takes {self._inputs[0]}: {self._input}, got {x.dtype}{list(x.shape)}")
        return x
