"""Node by node: run each node's instructions and read its value back, as numpy would lay it out."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.graph import Graph
from mlperf_opt.kernels import machine
from mlperf_opt.kernels.instruction import INPUT, OUTPUT
from mlperf_opt.runtimes.base import Observer
from mlperf_opt.runtimes.compiled.attention_ops import in_panels
from mlperf_opt.runtimes.compiled.layout import Value
from mlperf_opt.runtimes.compiled.program import Program
from mlperf_opt.runtimes.compiled.worker import Worker, aligned_bytes

Array = NDArray[Any]
_CALL_NS = 50_000  # from here on a call's own microsecond doesn't matter
_OFTEN = 32


def observe(graph: Graph, program: Program, state: dict[str, Array], x: Array, observer: Observer) -> Array:
    """Run ``program``, which has room for all rows of ``x`` at once, and tell the observer of every node.

    Returns:
        the graph's first output.
    """
    timed = "T" in next(iter(graph.inputs.values())).shape
    sequences, length = x.shape[:2] if timed else (len(x), 1)
    constants = aligned_bytes(program.constants.nbytes)
    constants[:] = program.constants
    worker = Worker(program, constants, state, length)
    spec = graph.specs[graph.outputs[0]]
    dims: dict[str, int] = {"N": sequences, "T": length, "L": length}
    out = np.empty(tuple(map(int, spec.bound(dims).shape)), spec.dtype)
    given, lengths, positions = np.ascontiguousarray(x), np.full(sequences, length, np.int64), np.zeros(sequences, np.int64)
    addresses = tuple(array.ctypes.data for array in (given, out, lengths, positions))
    arguments: tuple[Any, ...] = (*addresses, 0, sequences, length)
    for node in graph.nodes:
        taken = _time(worker, program.spans[node.output], arguments)
        shape = tuple(map(int, graph.specs[node.output].bound(dims).shape))
        if node.op == "advance":
            value = positions + lengths
        elif node.op == "cache_write":
            value = _cache(graph, state, node.argument("cache"), shape)
        else:
            made = program.made[node.output]
            inside = made.memory not in (INPUT, OUTPUT)
            value = _read(made, worker.arena, sequences * length) if inside else (x if made.memory == INPUT else out).copy()
            value = value.reshape(shape)
        observer(node, value.astype(graph.specs[node.output].dtype, copy=False), taken)
    machine.run(worker.part(program.spans[""]), *arguments)
    return out


def _time(worker: Worker, span: slice, arguments: tuple[Any, ...]) -> int:
    """Run a part of the program and return its nanoseconds, without those of the call where these would be most of it.

    A part reads what others have left and writes its own value, so that it can run again and again.
    """
    once, started = worker.part(span), time.perf_counter_ns()
    machine.run(once, *arguments)
    taken = time.perf_counter_ns() - started
    if taken > _CALL_NS:
        return taken
    empty, often = worker.part(slice(0, 0)), worker.part(span, _OFTEN)
    started = time.perf_counter_ns()
    machine.run(empty, *arguments)
    begun = time.perf_counter_ns()
    machine.run(often, *arguments)
    return max(0, time.perf_counter_ns() - begun - (begun - started)) // _OFTEN


def _read(value: Value, arena: Array, rows: int) -> Array:
    dtype = np.dtype(value.dtype)
    if value.image is None:
        shape, strides = (rows, value.count), (value.row_step, dtype.itemsize)
        start = value.offset
    else:
        c, h, w = value.image
        shape, strides = (rows, c, h, w), (value.row_step, dtype.itemsize, value.line_step, value.pixel_step)
        start = value.start() - value.start(value.halo) + value.offset
    last = start + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + dtype.itemsize
    whole = arena[start:last]
    view = np.ndarray(shape, dtype, whole, strides=strides)
    return view.reshape(rows, *value.shape).copy()


def _cache(graph: Graph, state: dict[str, Array], name: str, shape: tuple[int, ...]) -> Array:
    length, width = shape[2:]
    held = state[name]
    if in_panels(graph, name):
        rows, heads, panels, width, lanes = held.shape
        held = held.swapaxes(3, 4).reshape(rows, heads, panels * lanes, width)
    return held[:, :, :length, :width].copy()
