"""The graph: nodes in topological order, weights, inputs, outputs and explicit recurrent state. Immutable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from mlperf_opt.errors import GraphError
from mlperf_opt.graph.weight import Weight, split_name
from mlperf_opt.ops import OPS, OpDef, Spec

Attribute = int | float | bool | str

# A graph with a KV cache has these two beside its tokens; every session relies on them.
LENGTHS = "lengths"  # input int64[N]: how many of a row's tokens count in this call
POSITION = "position"  # state int64[N]: how many tokens a row holds


@dataclass(frozen=True)
class Node:
    """One use of an op.

    Attributes:
        op: name of the op in `OPS`.
        inputs: one name per argument of the op, in its order: a value, ``weight`` for its real values, ``weight:codes`` or
            ``weight:scale`` for what it stores; ``""`` for an optional argument that is absent. Of an op that got its last
            ones later (its functions have defaults for them) they may be left out.
        output: name of the value that the node makes; also the node's own name.
        attributes: the op's settings.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    @property
    def definition(self) -> OpDef:
        """The op's definition. Raises `GraphError` for an op that doesn't exist."""
        if self.op not in OPS:
            raise GraphError(f"node {self.output!r}: unknown op {self.op!r}")
        return OPS[self.op]

    def argument(self, name: str) -> str:
        """Return what stands for the op's argument ``name`` (``""`` if absent)."""
        position = self.definition.position(name)
        return self.inputs[position] if position < len(self.inputs) else ""


@dataclass(frozen=True)
class State:
    """One array that a graph carries from call to call.

    Attributes:
        name: the value that nodes read.
        spec: its shape (``N`` batch, ``L`` capacity) and dtype; it starts as zeros.
        update: the value that becomes the state of the next call.
    """

    name: str
    spec: Spec
    update: str


@dataclass(frozen=True)
class Graph:
    """A network.

    Attributes:
        name: name of the model, for people.
        nodes: in topological order.
        weights: by name.
        inputs: name -> spec; ``N`` is the batch, ``T`` the time.
        outputs: names of the values that a call returns.
        state: what is carried from call to call (a KV cache); empty for most graphs.
        tokenizer: what the token ids stand for, as plain data (`data.tokenizer`); None for a graph that reads no text.
    """

    name: str
    nodes: tuple[Node, ...]
    weights: Mapping[str, Weight]
    inputs: Mapping[str, Spec]
    outputs: tuple[str, ...]
    state: tuple[State, ...] = ()
    tokenizer: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))
        object.__setattr__(self, "inputs", MappingProxyType(dict(self.inputs)))

    @cached_property
    def specs(self) -> Mapping[str, Spec]:
        """Spec of every value and weight argument, by the ops' shape rules. Raises `GraphError`, naming the node."""
        specs = dict(self.inputs) | {state.name: state.spec for state in self.state}
        for node in self.nodes:
            definition = node.definition
            arguments = []
            try:
                for name in node.inputs:
                    if name and name not in specs:
                        specs[name] = self._weight_spec(name)
                    arguments.append(specs[name] if name else None)
                specs[node.output] = definition.infer(*arguments, **node.attributes)
            except (GraphError, TypeError) as error:  # TypeError: an attribute that the op doesn't take, or a missing one
                raise GraphError(f"node {node.output!r}: {error}") from None
        return MappingProxyType(specs)

    def _weight_spec(self, argument: str) -> Spec:
        name, part = split_name(argument)
        if name not in self.weights:
            raise GraphError(f"no value or weight {argument!r} before it")
        weight = self.weights[name]
        if part == "":
            return Spec(weight.values.shape, "float32")  # without making the real values
        array = weight.part(part)
        return Spec(array.shape, str(array.dtype))

    def node(self, output: str) -> Node:
        """Return the node that makes ``output``."""
        for node in self.nodes:
            if node.output == output:
                return node
        raise GraphError(f"no node makes {output!r}")

    def consumers(self, value: str) -> list[Node]:
        """Return the nodes that read ``value``."""
        return [node for node in self.nodes if value in node.inputs]

    def parameters(self) -> dict[str, Weight]:
        """The trained weights (not quantization scales or zero points), in the order of the nodes, each once."""
        found: dict[str, Weight] = {}
        for _, _, name in self._uses("parameters"):
            found.setdefault(name, self.weights[name])
        return found

    def matrices(self) -> dict[str, Node]:
        """The weights that multiply an input, each with a node that uses it: what quant and prune work on.

        Of several nodes it is the first that computes a product: a table that is the weight of the logits too is theirs.
        """
        found: dict[str, Node] = {}
        for node, role, name in self._uses("parameters"):
            if role == node.definition.matrix and (name not in found or found[name].op == "embedding" != node.op):
                found[name] = node
        return found

    def readers(self, weight: str) -> list[str]:
        """Return the names of the nodes that read a weight, in whatever part."""
        return list(self._readers.get(weight, ()))

    @cached_property
    def _readers(self) -> Mapping[str, list[str]]:
        """Every weight (and value) with the nodes that read it: writing ONNX asks for each weight of each node."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(split_name(name)[0] for name in node.inputs):
                found.setdefault(name, []).append(node.output)
        return found

    def _uses(self, roles: str) -> Iterator[tuple[Node, str, str]]:
        for node in self.nodes:
            for role in getattr(node.definition, roles):
                name, _ = split_name(node.argument(role))
                if name:
                    yield node, role, name

    def with_weights(self, weights: Mapping[str, Weight]) -> Graph:
        """Return this graph with some weights replaced."""
        return replace(self, weights={**self.weights, **weights})

    @cached_property
    def context(self) -> int | None:
        """The number of places that the position encoding knows; None for a graph without one."""
        for node in self.nodes:
            if node.op == "learned_positions":
                return self.weights[split_name(node.argument("table"))[0]].values.shape[0]
            if node.op in ("sinusoidal_positions", "rotary"):
                return int(node.attributes["context"])
        return None

    @cached_property
    def window(self) -> tuple[int, int] | None:
        """(sinks, window) of a cache that lets go of the tokens between them; None where nothing is let go."""
        for node in self.nodes:
            if node.op == "cached_attention" and "window" in node.attributes:
                return int(node.attributes["sinks"]), int(node.attributes["window"])
        return None

    @cached_property
    def limit(self) -> int | None:
        """The most tokens that a row may get: the context; None where a window moves along and only distances count."""
        absolute = any(node.op in ("learned_positions", "sinusoidal_positions") for node in self.nodes)
        return self.context if absolute or self.window is None else None

    def macs(self, dims: Mapping[str, int]) -> int:
        """Multiply-accumulates of one call with the named dimensions bound, e.g. ``{"N": 1}``."""
        return sum(cost.macs for _, cost in self.costs(dims))

    def costs(self, dims: Mapping[str, int]) -> Iterator[tuple[Node, Any]]:
        """Yield (node, `Cost`) for one call with the named dimensions bound."""
        for node in self.nodes:
            specs = [self.specs[name].bound(dims) if name else None for name in node.inputs]
            yield node, node.definition.cost(self.specs[node.output].bound(dims), *specs, **node.attributes)
