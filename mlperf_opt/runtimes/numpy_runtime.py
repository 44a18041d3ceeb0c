"""The numpy runtime: one op after the other, as the ops define it; what other runtimes are checked by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import LENGTHS, Graph, Node, split_name
from mlperf_opt.runtimes.base import Observer, Runtime
from mlperf_opt.runtimes.session import StateSession, check_limits, zero_state

Array = NDArray[Any]
Run = Callable[..., tuple[Array, ...]]


class NumpyExecutable:
    """A graph as one Python function, written for it: a line for each node, its values in local variables.

    A loop over the nodes would take 6 % more of a decode step, in which no array has more than one row.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._arity = len(graph.inputs) - (1 if graph.state else 0)  # a call makes the lengths itself
        source, self._constants = _written(graph)
        self._code = compile(source, "<graph>", "exec")
        self._plain = self._bound(lambda node: node.definition.forward)

    @property
    def notes(self) -> Mapping[str, str]:
        return {}

    @property
    def workspace_bytes(self) -> int:
        return 0

    def __call__(self, *inputs: Array) -> Array:
        return self._call(inputs, self._plain)

    def observe(self, observer: Observer, *inputs: Array) -> Array:
        return self._call(inputs, self._bound(partial(_observed, observer)))

    def start(self, batch: int, max_length: int) -> StateSession:
        return StateSession(self.graph, batch, max_length, partial(self._run_state, self._plain))

    def _call(self, inputs: tuple[Array, ...], run: Run) -> Array:
        if len(inputs) != self._arity:
            raise GraphError(f"{self.graph.name} takes {self._arity} inputs, got {len(inputs)}")
        if not self.graph.state:
            return run(*inputs)[0]
        (tokens,) = inputs  # a fresh prefill of whole rows
        rows, length = tokens.shape
        check_limits(self.graph, rows, length)
        fresh = zero_state(self.graph, rows, length)
        return self._run_state(run, tokens, np.full(rows, length, np.int64), fresh)[0]

    def _run_state(self, run: Run, tokens: Array, lengths: Array, state: list[Array]) -> tuple[Array, list[Array]]:
        logits, *updates = run(tokens, lengths, *state)
        return logits, updates

    def _bound(self, function: Callable[[Node], Callable[..., Array]]) -> Run:
        """Return the graph's function in which each node calls what ``function`` gives for it."""
        names: dict[str, Any] = self._constants | {f"node{i}": function(node) for i, node in enumerate(self.graph.nodes)}
        exec(self._code, names)
        return names.pop("run")  # left in its own globals it would keep itself alive, and the weights with it


def _written(graph: Graph) -> tuple[str, dict[str, Any]]:
    """Return the source of run(inputs, the lengths behind the tokens, states) -> (output, the states' updates), and what it
    finds outside of itself, but for the nodes' functions: weights, None for an absent argument, attributes.

    A graph may come from a file, so nothing of its text gets into the source: its names are numbers there, and attributes go
    by what the op's shape rule calls them. A value is let go of behind the last node that reads it.
    """
    given = [*(name for name in graph.inputs if name != LENGTHS), *[LENGTHS][: len(graph.state)]]
    given += [state.name for state in graph.state]
    kept = [graph.outputs[0], *(state.update for state in graph.state)]
    values = {*given, *(node.output for node in graph.nodes)}
    names = dict.fromkeys([*given, *(name for node in graph.nodes for name in (*node.inputs, node.output))])
    label = {name: f"value{i}" for i, name in enumerate(names)}
    outside: dict[str, Any] = {label[name]: _constant(graph, name) for name in names if name not in values}
    last = {name: i for i, node in enumerate(graph.nodes) for name in (node.output, *node.inputs)}
    lines = [f"def run({', '.join(label[name] for name in given)}):"]
    for i, node in enumerate(graph.nodes):
        keys = [key for key in signature(node.definition.infer).parameters if key in node.attributes]
        outside |= {f"node{i}_{key}": node.attributes[key] for key in keys}
        arguments = [*(label[name] for name in node.inputs), *(f"{key}=node{i}_{key}" for key in keys)]
        lines.append(f"    {label[node.output]} = node{i}({', '.join(arguments)})")
        dead = {label[n] for n in (*node.inputs, node.output) if last[n] == i and n in values and n not in kept}
        lines += [f"    {value} = None" for value in sorted(dead)]
    return "\n".join([*lines, f"    return ({', '.join(label[name] for name in kept)},)"]), outside


def _constant(graph: Graph, name: str) -> Array | None:
    weight, part = split_name(name)
    return graph.weights[weight].part(part) if weight else None


def _observed(observer: Observer, node: Node) -> Callable[..., Array]:
    def forward(*given: Array | None, **attributes: Any) -> Array:
        started = time.perf_counter_ns()
        value = node.definition.forward(*given, **attributes)
        observer(node, value, time.perf_counter_ns() - started)
        return value

    return forward


def intermediate_values(
    graph: Graph, names: set[str], *inputs: Array, of: Callable[[str, Array], Any] = lambda _name, value: value
) -> dict[str, Any]:
    """Run ``graph`` and return the named values, inputs among them where named: what calibration looks at.

    Args:
        graph: without state.
        names: values of the graph.
        inputs: in the order of ``graph.inputs``.
        of: (name, value) -> what to keep of it, asked for as soon as it is computed: the values of all layers together take
            many times the memory of one.
    """
    found = {name: of(name, array) for name, array in zip(graph.inputs, inputs, strict=False) if name in names}

    def keep(node: Node, value: Array, _nanoseconds: int) -> None:
        if node.output in names:
            found[node.output] = of(node.output, value)

    NumpyExecutable(graph).observe(keep, *inputs)
    return found


NUMPY = Runtime("numpy", lambda graph, _options: NumpyExecutable(graph))
