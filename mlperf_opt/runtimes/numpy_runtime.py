"""The numpy runtime: one op after the other, as the ops define it; what other runtimes are checked by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
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
    """A graph with its weights resolved once and its values in numbered slots, freed after their last use."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._arity = len(graph.inputs) - (1 if graph.state else 0)  # a call makes the lengths itself
        # what a call is given, in its order, has the first slots
        given = [*(name for name in graph.inputs if name != LENGTHS), *[LENGTHS][: len(graph.state)]]
        given += [state.name for state in graph.state]
        kept = [graph.outputs[0], *(state.update for state in graph.state)]
        values = {*given, *(node.output for node in graph.nodes)}
        names = dict.fromkeys([*given, *(name for node in graph.nodes for name in (*node.inputs, node.output))])
        self._slots = {name: i for i, name in enumerate(names)}
        self._given = len(given)
        self._constants = [None if name in values else _constant(graph, name) for name in names][self._given :]
        self._read_kept = _reader([self._slots[name] for name in kept])
        last = {name: i for i, node in enumerate(graph.nodes) for name in (node.output, *node.inputs)}
        self._dead = [
            [self._slots[n] for n in {*node.inputs, node.output} & (values - {*kept}) if last[n] == i]
            for i, node in enumerate(graph.nodes)
        ]
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
        """Return run(inputs, the lengths behind the tokens, states) -> (output, the states' updates).

        Each node calls what ``function`` gives for it.
        """
        program = [
            (
                partial(function(node), **node.attributes) if node.attributes else function(node),
                _reader([self._slots[name] for name in node.inputs]),
                self._slots[node.output],
                dead,
            )
            for node, dead in zip(self.graph.nodes, self._dead, strict=True)
        ]
        constants, read_kept = self._constants, self._read_kept

        def run(*given: Array) -> tuple[Array, ...]:
            slots = [*given, *constants]
            for forward, read, output, dead in program:
                slots[output] = forward(*read(slots))
                for i in dead:
                    slots[i] = None
            return read_kept(slots)

        return run


def _reader(places: list[int]) -> Callable[[list[Any]], tuple[Any, ...]]:
    """Return a function that reads these slots into a tuple; an itemgetter of one place would return it bare."""
    if len(places) == 1:
        (place,) = places
        return lambda slots: (slots[place],)
    return itemgetter(*places)


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
