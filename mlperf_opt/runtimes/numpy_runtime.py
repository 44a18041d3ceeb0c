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


class NumpyExecutable:
    """A graph with its weights resolved once and its values in numbered slots, freed after their last use."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._slots: dict[str, int] = {"": 0}
        self._initial: list[Array | None] = [None]  # slot 0 stands for an absent optional argument
        values = {*graph.inputs, *(s.name for s in graph.state), *(n.output for n in graph.nodes)}
        for name in [*graph.inputs, *(s.name for s in graph.state)]:
            self._slot(name, None)
        for node in graph.nodes:
            for name in (n for n in node.inputs if n not in values):
                weight, part = split_name(name)
                self._slot(name, graph.weights[weight].part(part) if weight else None)
            self._slot(node.output, None)
        self._arity = len(graph.inputs) - (1 if graph.state else 0)  # a call makes the lengths itself
        self._kept = {*graph.outputs, *(s.update for s in graph.state)}
        self._tokens = next(name for name in graph.inputs if name != LENGTHS)
        self._updates = [(state.name, state.update) for state in graph.state]
        dead = self._last_reads(values)
        self._program = [
            (
                node,
                partial(node.definition.forward, **node.attributes) if node.attributes else node.definition.forward,
                _reader([self._slots[n] for n in node.inputs]),
                self._slots[node.output],
                dead[node.output],
            )
            for node in graph.nodes
        ]

    @property
    def notes(self) -> Mapping[str, str]:
        return {}

    @property
    def workspace_bytes(self) -> int:
        return 0

    def __call__(self, *inputs: Array) -> Array:
        return self._call(inputs, None)

    def observe(self, observer: Observer, *inputs: Array) -> Array:
        return self._call(inputs, observer)

    def start(self, batch: int, max_length: int) -> StateSession:
        return StateSession(self.graph, batch, max_length, lambda *feeds: self._run_state(*feeds, observer=None))

    def _call(self, inputs: tuple[Array, ...], observer: Observer | None) -> Array:
        if len(inputs) != self._arity:
            raise GraphError(f"{self.graph.name} takes {self._arity} inputs, got {len(inputs)}")
        if not self.graph.state:
            values = self._execute(dict(zip(self.graph.inputs, inputs, strict=True)), observer)
            return values[self.graph.outputs[0]]
        (tokens,) = inputs  # a fresh prefill of whole rows
        rows, length = tokens.shape
        check_limits(self.graph, rows, length)
        fresh = zero_state(self.graph, rows, length)
        return self._run_state(tokens, np.full(rows, length, np.int64), fresh, observer=observer)[0]

    def _run_state(
        self, tokens: Array, lengths: Array, state: dict[str, Array], *, observer: Observer | None
    ) -> tuple[Array, dict[str, Array]]:
        values = self._execute({self._tokens: tokens, LENGTHS: lengths, **state}, observer)
        return values[self.graph.outputs[0]], {name: values[update] for name, update in self._updates}

    def _execute(self, feeds: dict[str, Array], observer: Observer | None) -> dict[str, Array]:
        slots = self._initial.copy()
        for name, array in feeds.items():
            slots[self._slots[name]] = array
        for node, forward, read, output, dead in self._program:
            if observer is None:
                slots[output] = forward(*read(slots))
            else:
                started = time.perf_counter_ns()
                slots[output] = value = forward(*read(slots))
                observer(node, value, time.perf_counter_ns() - started)
            for i in dead:
                slots[i] = None
        return {name: slots[self._slots[name]] for name in self._kept}  # type: ignore[misc]

    def _slot(self, name: str, initial: Array | None) -> None:
        if name not in self._slots:
            self._slots[name] = len(self._initial)
            self._initial.append(initial)

    def _last_reads(self, values: set[str]) -> dict[str, list[int]]:
        """Return node name -> slots of the values that no later node reads (its own, where nobody does)."""
        last: dict[str, str] = {}
        for node in self.graph.nodes:
            last |= dict.fromkeys({*node.inputs, node.output} & (values - self._kept), node.output)
        dead: dict[str, list[int]] = {node.output: [] for node in self.graph.nodes}
        for value, reader in last.items():
            dead[reader].append(self._slots[value])
        return dead


def _reader(places: list[int]) -> Callable[[list[Array | None]], tuple[Array | None, ...]]:
    """Return a function that reads these slots into a tuple; an itemgetter of one place would return it bare."""
    if len(places) == 1:
        (place,) = places
        return lambda slots: (slots[place],)
    return itemgetter(*places)


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
