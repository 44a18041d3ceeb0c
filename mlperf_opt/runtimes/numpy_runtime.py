"""The numpy runtime: one op after the other, as the ops define it; what other runtimes are checked by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import itemgetter
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import LENGTHS, Graph, Node, split_name
from mlperf_opt.runtimes.base import Observer, Runtime
from mlperf_opt.runtimes.session import StateSession, check_limits, zero_state

Array = NDArray[Any]
Run = Callable[..., tuple[Array, ...]]


_WEIGHTED, _RELEASE, _OTHER = -1, 0, 5  # how a row of a program reads; 1, 2 and 4: so many slots


class NumpyExecutable:
    """A graph with its weights resolved once and its values in numbered slots, freed after their last use."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._arity = len(graph.inputs) - (1 if graph.state else 0)  # a call makes the lengths itself
        # what a call is given, in its order, has the first slots
        given = [*(name for name in graph.inputs if name != LENGTHS), *[LENGTHS][: len(graph.state)]]
        given += [state.name for state in graph.state]
        kept = [graph.outputs[0], *(state.update for state in graph.state)]
        self._rows, self._rest, slots = _laid_out(graph, given, {*kept})
        self._read_kept = _reader([slots[name] for name in kept])
        self._plain = self._bound(lambda node: _with_attributes(node.definition.forward, tuple(node.attributes.items())))

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

        Each node calls what ``function`` gives for it, with its arrays alone.
        """
        program: list[tuple[Any, ...]] = [
            (row.how, row.node and function(row.node), row.output, *row.reads) for row in self._rows
        ]
        rest, read_kept = self._rest, self._read_kept

        # Getting to a node takes a decode step longer than many a node itself: the weights of those before have thrown the
        # way there out of the CPU's caches. So a row is one tuple that holds what it can.
        def run(*given: Array) -> tuple[Array, ...]:
            slots = [*given, *rest]
            for how, forward, output, a, b, c, d in program:
                if how == _WEIGHTED:
                    slots[output] = forward(slots[a], b, c)
                elif how == 2:
                    slots[output] = forward(slots[a], slots[b])
                elif how == 4:
                    slots[output] = forward(slots[a], slots[b], slots[c], slots[d])
                elif how == 1:
                    slots[output] = forward(slots[a])
                elif how == _RELEASE:
                    slots[output] = None
                else:
                    slots[output] = forward(*a(slots))
            return read_kept(slots)

        return run


@dataclass(frozen=True)
class _Row:
    """One step of a program: a node that puts its value into the slot ``output``, or the release of that slot.

    Attributes:
        how: what ``reads`` holds: a slot and two weights (`_WEIGHTED`), 1, 2 or 4 slots, nothing (`_RELEASE`), or what reads
            the arguments from the slots (`_OTHER`).
    """

    how: int
    node: Node | None
    output: int
    reads: tuple[Any, ...]  # always four


def _laid_out(graph: Graph, given: list[str], kept: set[str]) -> tuple[list[_Row], list[Array | None], dict[str, int]]:
    """Return (the graph's program, what is in the slots behind those of ``given`` before it runs, each name's slot).

    A value takes the slot of one that its node is the last to read, which lets go of that one; ``kept`` are kept to the end.
    """
    values = {*given, *(node.output for node in graph.nodes)}
    passing = values - {*given} - kept  # whoever calls holds what he gives
    last = {name: node for node in graph.nodes for name in (node.output, *node.inputs)}
    slots = {name: i for i, name in enumerate(given)}
    rest: list[Array | None] = []
    rows: list[_Row] = []
    free: list[int] = []

    def new_slot(holds: Array | None) -> int:
        rest.append(holds)
        return len(given) + len(rest) - 1

    for node in graph.nodes:
        how: int = _OTHER
        reads: list[Any] = [None] * 4
        if [name in values for name in node.inputs] == [True, False, False]:
            how = _WEIGHTED
            reads[:3] = slots[node.inputs[0]], *(_constant(graph, name) for name in node.inputs[1:])
        else:
            for name in node.inputs:
                if name not in slots:
                    slots[name] = new_slot(_constant(graph, name))
            places = [slots[name] for name in node.inputs]
            if len(places) in (1, 2, 4):
                how = len(places)
                reads[:how] = places
            else:
                reads[0] = _reader(places)
        ended = [name for name in dict.fromkeys(node.inputs) if name in passing and last[name] is node]
        over = [slots[name] for name in ended]
        slots[node.output] = over.pop() if over else free.pop() if free else new_slot(None)
        if node.output in passing and last[node.output] is node:
            over.append(slots[node.output])  # nobody reads it
        rows.append(_Row(how, node, slots[node.output], tuple(reads)))
        rows += [_Row(_RELEASE, None, slot, (None,) * 4) for slot in over]
        free += over
    return rows, rest, slots


@lru_cache(maxsize=256)
def _with_attributes(forward: Any, attributes: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
    """Return an op's function that needs no attributes, the same one for all nodes with these.

    They become the defaults of a copy's keywords, which saves `partial`'s own call around each of the op's.
    """
    if not attributes:
        return forward
    given, code = dict(attributes), getattr(forward, "__code__", None)
    if code is None or not given.keys() <= {*code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]}:
        return partial(forward, **given)  # a function that takes them in another way
    copy = FunctionType(code, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = {**(forward.__kwdefaults__ or {}), **given}
    return copy


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
    def forward(*given: Array | None) -> Array:
        started = time.perf_counter_ns()
        value = node.definition.forward(*given, **node.attributes)
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
