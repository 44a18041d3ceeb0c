"""runtime=onnx: the exported file in onnxruntime, a third opinion that shares no arithmetic with ours.

What runs is exactly what `export` writes. onnxruntime fuses and reorders as it likes, so results agree up to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError
from mlperf_opt.extras import require_installed
from mlperf_opt.graph import LENGTHS, Graph, Node, split_name
from mlperf_opt.measure import cpu_flags
from mlperf_opt.onnx_export import export, input_name
from mlperf_opt.runtimes.base import Observer, Runtime
from mlperf_opt.runtimes.session import StateSession, check_limits, check_tokens, zero_state

Array = NDArray[Any]
_FATAL = 4  # onnxruntime's log level: what it would say of an error, its exception says

# Left alone, a float product with int8 weights (scheme=weight_only) rounds its activations to int8 too; 1 is float32.
_WEIGHT_ONLY = ("session.qdq_matmulnbits_accuracy_level", "1")
# Without VNNI the fast u8 x s8 product adds pairs in int16, which saturates; this chooses the exact and slower one.
_EXACT_INT8 = ("session.x64quantprecision", "1")
_VNNI = {"avx512_vnni", "avx_vnni"}


class OnnxExecutable:
    """A graph in onnxruntime.

    Args:
        graph: what to run.
        data: its exported file, where it exists already; it must be that of ``graph``.
        threads: of one call.
        fuse: False runs operator by operator what the file says. Fusing overlooks some mistakes in it (a matrix product
            takes its scales along the right axis, whatever the file says), so a file is checked both ways.
    """

    def __init__(self, graph: Graph, data: bytes | None = None, threads: int = 1, *, fuse: bool = True) -> None:
        self.graph = graph
        self._threads = threads
        self._session = _Session(export(graph) if data is None else data, threads, fuse)
        self._arity = len(graph.inputs) - (1 if graph.state else 0)  # a call makes the lengths itself
        self._tokens = next(name for name in graph.inputs if name != LENGTHS)

    @property
    def notes(self) -> Mapping[str, str]:
        return {}

    @property
    def workspace_bytes(self) -> int:
        return 0  # not known: the runtime is not traced

    def __call__(self, *inputs: Array) -> Array:
        feeds = self._feeds(inputs)
        return self._session.run({input_name(n) if n in self._states else n: a for n, a in feeds.items()})[0]

    def start(self, batch: int, max_length: int) -> StateSession:
        return StateSession(self.graph, batch, max_length, self._run_state)

    def observe(self, observer: Observer, *inputs: Array) -> Array:
        """Run node by node, each as an ONNX model of its own.

        A time is that of one node's call of onnxruntime. What onnxruntime fuses across nodes in the whole model runs
        unfused here, so the times don't add up to a call, and outputs may differ from it by rounding.
        """
        values = self._feeds(inputs)
        for node, session in self._single:
            feeds = {name: values[name] for name in node.inputs if name in values}
            started = time.perf_counter_ns()
            values[node.output] = session.run(feeds)[0]
            observer(node, values[node.output], time.perf_counter_ns() - started)
        return values[self.graph.outputs[0]]

    @cached_property
    def _states(self) -> list[str]:
        return [state.name for state in self.graph.state]

    @cached_property
    def _single(self) -> list[tuple[Node, _Session]]:
        return [(n, _Session(export(single_node(self.graph, n), check=False), self._threads)) for n in self.graph.nodes]

    def _feeds(self, inputs: tuple[Array, ...]) -> dict[str, Array]:
        """Return the inputs and the state of one call by their names in the graph: with a cache, a fresh prefill."""
        if len(inputs) != self._arity:
            raise GraphError(f"{self.graph.name} takes {self._arity} inputs, got {len(inputs)}")
        if not self.graph.state:
            check_tokens(self.graph, inputs[0])  # ONNX counts negative ids from the end
            return dict(zip(self.graph.inputs, inputs, strict=True))
        (tokens,) = inputs
        rows, length = tokens.shape
        check_limits(self.graph, rows, length)
        check_tokens(self.graph, tokens)
        fresh = zip(self._states, zero_state(self.graph, rows, length), strict=True)
        return {self._tokens: tokens, LENGTHS: np.full(rows, length, np.int64), **dict(fresh)}

    def _run_state(self, tokens: Array, lengths: Array, state: list[Array]) -> tuple[Array, list[Array]]:
        check_tokens(self.graph, tokens)
        past = {input_name(name): array for name, array in zip(self._states, state, strict=True)}
        found = self._session.run({self._tokens: tokens, LENGTHS: lengths, **past})
        # outputs of the model: those of the graph, then the states in their order
        return found[0], found[len(self.graph.outputs) :]


class _Session:
    """One model in onnxruntime, on the CPU."""

    def __init__(self, data: bytes, threads: int, fuse: bool = True) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if not fuse:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(*_WEIGHT_ONLY)
        if not _VNNI & set(cpu_flags()):
            options.add_session_config_entry(*_EXACT_INT8)
        self._failures = _failures()
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except self._failures as error:
            raise GraphError(f"onnxruntime refuses the model: {_line(error)}") from None

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        try:
            return list(self._session.run(None, feeds))  # type: ignore[arg-type] - all outputs are tensors
        except self._failures as error:
            raise GraphError(f"onnxruntime: {_line(error)}") from None


def _failures() -> tuple[type[Exception], ...]:
    """onnxruntime's own exceptions, which share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[attr-defined] - compiled

    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return tuple(getattr(state, name) for name in names)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def single_node(graph: Graph, node: Node) -> Graph:
    """Return the graph of one node of ``graph``: the values that it reads are its inputs."""
    read = [name for name in dict.fromkeys(node.inputs) if name]
    weights = {n: graph.weights[n] for n in (split_name(name)[0] for name in read) if n in graph.weights}
    inputs = {name: graph.specs[name] for name in read if split_name(name)[0] not in weights}
    return replace(graph, nodes=(node,), weights=weights, inputs=inputs, outputs=(node.output,), state=())


ONNX = Runtime(
    "onnx",
    lambda graph, options: OnnxExecutable(graph, threads=options.threads),
    require=lambda: require_installed("runtime=onnx", "onnx", "onnxruntime"),
    traced=False,
)
