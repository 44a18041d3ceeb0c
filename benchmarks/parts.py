"""Single kernels of the compiled runtime: a node of a graph, run as the part of its program, over and over.

A part leaves out what a call of the whole graph costs around the kernel: the interpreter, quantizing, copying the result. A
short part is repeated within one native call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases import TRANSFORMER, model
from numpy.typing import NDArray

from mlperf_opt.data import load_data
from mlperf_opt.graph import Graph, GraphBuilder, split_name
from mlperf_opt.kernels import machine
from mlperf_opt.passes import PASSES, PassContext
from mlperf_opt.passes.prune import Prune
from mlperf_opt.runtimes import COMPILED, NUMPY, Isa, RuntimeOptions
from mlperf_opt.runtimes.compiled.executable import CompiledExecutable
from mlperf_opt.runtimes.compiled.worker import Worker

Array = NDArray[Any]
_REPEAT_FROM = 64  # rows: below, a part is so short that it is repeated
_REPEATS = 8


def float_product(units: int, inputs: int, sparsity: float = 0.0) -> Graph:
    """x (N, inputs) -> linear, float32; with some share of the smallest weights set to zero."""
    rng = np.random.default_rng(0)
    build = GraphBuilder("product")
    x = build.input("x", ("N", inputs), "float32")
    weight = rng.standard_normal((units, inputs)).astype(np.float32)
    graph = build.finish(build.node("linear", "y", x, weight=weight, bias=np.zeros(units, np.float32)))
    if sparsity:
        graph = Prune(sparsity=sparsity)(graph, PassContext(load_data("digits"), 0, NUMPY)).graph
    return graph


def int8_product(units: int, inputs: int) -> Graph:
    """x (N, inputs) -> quantize -> qlinear to codes, as between two layers -> a small layer that reads them."""
    rng = np.random.default_rng(0)
    build = GraphBuilder("product")
    x = build.input("x", ("N", inputs), "float32")
    scale, zero = np.array(0.01, np.float32), np.array(3, np.uint8)
    codes = build.node("quantize", "codes", x, scale=scale, zero=zero)
    y = _qlinear(
        build, rng, "y", codes, (units, inputs), x_scale=scale, x_zero=zero, y_scale=np.array(1, np.float32), y_zero=zero
    )
    return build.finish(_qlinear(build, rng, "z", y, (1, units), x_scale=np.array(1, np.float32), x_zero=zero))


def _qlinear(build: GraphBuilder, rng: Any, name: str, x: str, shape: tuple[int, int], **grids: Array) -> str:
    weight = rng.integers(-127, 128, shape, dtype=np.int8)
    scale, bias = np.full(shape[0], 0.01, np.float32), np.zeros(shape[0], np.int32)
    return build.node("qlinear", name, x, weight=weight, w_scale=scale, bias=bias, **grids)


def node_call(graph: Graph, node: str, rows: int, isa: Isa = "auto") -> tuple[Callable[[], None], int]:
    """Return a call that runs one node on ``rows`` rows, and how many times it runs it.

    Raises:
        ValueError: more rows than the program takes at once.
    """
    executable = COMPILED.configured(RuntimeOptions(1, isa)).prepare(graph)
    assert isinstance(executable, CompiledExecutable)
    program = executable._program
    worker = Worker(program, executable._constants)
    if rows > program.rows:
        raise ValueError(f"{rows} rows, but a chunk has {program.rows}")
    (spec,) = graph.inputs.values()
    x = np.random.default_rng(0).random((rows, *map(int, spec.shape[1:])), dtype=np.float32) * 2.5
    np.testing.assert_allclose(executable(x), NUMPY.prepare(graph)(x), rtol=1e-4, atol=1e-3)  # nobody times a broken kernel
    out = np.empty(x.size + rows * 4096, np.float32)  # more than any node of these graphs leaves
    given = x.reshape(-1)
    machine.run_arrays(worker.address, given, out, 0, rows, 1)  # leaves what the node reads
    repeat = _REPEATS if rows < _REPEAT_FROM else 1
    job = worker.part(program.spans[_reader(program.graph, f"{node}.weight")], repeat)

    def run(_kept: Any = (worker, executable)) -> None:
        machine.run_arrays(job, given, out, 0, rows, 1)

    return run, repeat


def _reader(graph: Graph, weight: str) -> str:
    """The node that reads a weight: fused with its activation it may have another name than in the graph that was given."""
    return next(n.output for n in graph.nodes if weight in {split_name(argument)[0] for argument in n.inputs})


def attention_call(positions: int) -> tuple[Callable[[], None], int, int]:
    """Return a call of one cached attention of the transformer, how many times it runs it, and the bytes that it reads."""
    graph = PASSES["kv_cache"]()(model("transformer").graph, PassContext(load_data("reverse"), 0, NUMPY)).graph
    executable = COMPILED.prepare(graph)
    assert isinstance(executable, CompiledExecutable)
    state = executable._state(1, positions)
    for array in state.values():
        if array.dtype == np.float32:
            array[:] = np.random.default_rng(0).standard_normal(array.shape)
    worker = Worker(executable._program, executable._constants, state, positions)
    token, out = np.zeros(1, np.int64), np.empty(TRANSFORMER.vocabulary, np.float32)
    lengths, held = np.ones(1, np.int64), np.full(1, positions - 1, np.int64)
    addresses = tuple(array.ctypes.data for array in (token, out, lengths, held))
    machine.run(worker.part(slice(None)), *addresses, 0, 1, 1)
    job = worker.part(executable._program.spans["layer1.attention"], _REPEATS)

    def run(_kept: Any = (worker, state, token, out, lengths, held, executable)) -> None:
        machine.run(job, *addresses, 0, 1, 1)

    return run, _REPEATS, 2 * 4 * TRANSFORMER.dim * positions
