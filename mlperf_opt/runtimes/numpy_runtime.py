"""The numpy runtime: one op after the other, as the ops define it; what other runtimes are checked by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
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

# How a step reads what its node is given, where that is not a number of slots.
_WEIGHTED, _OTHERWISE, _RELEASE = -1, -2, -3
_COUNTS = (1, 2, 4)  # of slots that a step reads by itself: what the nodes of a decode step have


class NumpyExecutable:
    """A graph with its weights resolved once and its values in numbered slots, freed after their last use."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._arity = len(graph.inputs) - (1 if graph.state else 0)  # a call makes the lengths itself
        # what a call is given, in its order, has the first slots
        given = [*(name for name in graph.inputs if name != LENGTHS), *[LENGTHS][: len(graph.state)]]
        given += [state.name for state in graph.state]
        kept = [graph.outputs[0], *(state.update for state in graph.state)]
        self._layout = _laid_out(graph, given, kept)
        self._plain = self._bound(_with_attributes())

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
            (step.how, function(step.node) if step.node else None, step.output, *step.reads, *[None] * (4 - len(step.reads)))
            for step in self._layout.steps
        ]
        initial, read_kept = self._layout.initial, _reader(self._layout.kept)

        # In a decode step the CPU's caches are cold between two nodes: a weight has just streamed through them. So all that
        # is needed of a step is in one flat tuple, not behind attributes and calls.
        def run(*given: Array) -> tuple[Array, ...]:
            slots = [*given, *initial]
            for how, forward, output, a, b, c, d in program:  # a to d: see `_Step.reads`
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
class _Step:
    """A node that puts its value into a slot, or the release of a slot.

    Attributes:
        how: 1, 2 or 4, `_WEIGHTED`, `_OTHERWISE` or `_RELEASE`.
        reads: so many slots; a slot and two weights; a function of all slots that gives the node's arguments; nothing.
    """

    how: int
    node: Node | None
    output: int
    reads: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Layout:
    """A graph's steps, what the slots behind those of a call's arguments hold at first, the slots of what it returns."""

    steps: list[_Step]
    initial: list[Array | None]
    kept: list[int]


def _laid_out(graph: Graph, given: list[str], kept: list[str]) -> _Layout:
    """Give each value a slot: that of one which its node is the last to read, so that writing it lets go of the other."""
    values = {*given, *(node.output for node in graph.nodes)}
    temporary = values - {*given, *kept}  # whoever calls holds what he gives
    last = {name: node for node in graph.nodes for name in (node.output, *node.inputs)}
    slots = {name: i for i, name in enumerate(given)}
    initial: list[Array | None] = []
    steps: list[_Step] = []
    constant = cache(partial(_constant, graph))  # a weight with several readers is decoded once

    def slot_of(name: str) -> int:
        if name not in slots:
            slots[name] = len(given) + len(initial)
            initial.append(None if name in values else constant(name))
        return slots[name]

    for node in graph.nodes:
        if [name in values for name in node.inputs] == [True, False, False]:
            x, weight, other = node.inputs
            how, reads = _WEIGHTED, (slot_of(x), constant(weight), constant(other))
        elif len(node.inputs) in _COUNTS:
            how, reads = len(node.inputs), tuple(slot_of(name) for name in node.inputs)
        else:
            how, reads = _OTHERWISE, (_reader([slot_of(name) for name in node.inputs]),)
        released = [slots[name] for name in dict.fromkeys(node.inputs) if name in temporary and last[name] is node]
        if released:
            slots[node.output] = released.pop()
        output = slot_of(node.output)
        if node.output in temporary and last[node.output] is node:
            released.append(output)  # nobody reads it
        steps += [_Step(how, node, output, reads), *(_Step(_RELEASE, None, slot) for slot in released)]
    return _Layout(steps, initial, [slot_of(name) for name in kept])


def _with_attributes() -> Callable[[Node], Callable[..., Array]]:
    """Return what gives a node's function with its attributes filled in, one for all nodes that are alike.

    They become the defaults of the keywords of a copy, which saves `partial`'s own call around each of the op's; and what
    nodes share is still in the CPU's caches.
    """
    made: dict[tuple[Any, ...], Callable[..., Array]] = {}

    def function(node: Node) -> Callable[..., Array]:
        forward = node.definition.forward
        key = (forward, *((name, type(value), value) for name, value in node.attributes.items()))
        if node.attributes and key not in made:
            made[key] = _filled_in(forward, node.attributes)
        return made[key] if node.attributes else forward

    return function


def _filled_in(forward: Callable[..., Array], attributes: Mapping[str, Any]) -> Callable[..., Array]:
    if isinstance(forward, FunctionType):
        code = forward.__code__
        keywords = code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]
        if attributes.keys() <= {*keywords}:
            copy = FunctionType(code, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__)
            copy.__kwdefaults__ = {**(forward.__kwdefaults__ or {}), **attributes}
            return copy
    return partial(forward, **attributes)  # takes them in another way


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
