"""A small builder, so that a network reads like its forward pass."""

from __future__ import annotations

from mlperf_opt.errors import GraphError, did_you_mean
from mlperf_opt.graph.graph import Attribute, Graph, Node
from mlperf_opt.graph.verify import verify
from mlperf_opt.graph.weight import Array, Weight
from mlperf_opt.ops import OPS, Spec


class GraphBuilder:
    """Collects nodes and weights::

    build = GraphBuilder("mlp")
    x = build.input("x", ("N", 64), "float32")
    x = build.node("linear", "fc1", x, weight=w, bias=b)
    graph = build.finish(x)
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[Node] = []
        self._weights: dict[str, Weight] = {}
        self._inputs: dict[str, Spec] = {}

    def input(self, name: str, shape: tuple[int | str, ...], dtype: str) -> str:
        """Declare an input and return its name. Raises `GraphError` for a name declared before."""
        if name in self._inputs:
            raise GraphError(f"the input {name!r} is declared twice")
        self._inputs[name] = Spec(shape, dtype)
        return name

    def node(self, op: str, name: str, *values: str, **settings: Array | Attribute) -> str:
        """Append a node and return the name of its value.

        Args:
            op: name of the op.
            name: name of the node; its weights are called ``name.argument``.
            values: the values it reads, in the order of the op's arguments that are not given as weights.
            settings: arrays become weights of the argument of that name (integers are read as stored, ``:codes``), the
                rest attributes.

        Raises:
            GraphError: an unknown op, an array for no argument of the op, or more values than it takes.
        """
        if op not in OPS:
            raise GraphError(f"node {name!r}: unknown op {op!r}{did_you_mean(op, OPS)}")
        definition = OPS[op]
        roles = [argument.rstrip("?") for argument in definition.arguments]
        for key, value in settings.items():
            if hasattr(value, "dtype") and key not in roles:
                raise GraphError(f"node {name!r}: {op} has no argument {key!r}{did_you_mean(key, roles)}")
        inputs: list[str] = []
        remaining = list(values)
        attributes = {key: value for key, value in settings.items() if not hasattr(value, "dtype")}
        for role in roles:
            if role in settings:
                weight = Weight(settings[role])  # type: ignore[arg-type]
                self._weights[f"{name}.{role}"] = weight
                # integers are codes or zero points, which an op reads as stored
                inputs.append(f"{name}.{role}" + (":codes" if weight.values.dtype.kind in "iu" else ""))
            else:
                inputs.append(remaining.pop(0) if remaining else "")
        if remaining:
            raise GraphError(f"node {name!r}: {op} has no argument left for {', '.join(remaining)}")
        self._nodes.append(Node(op, tuple(inputs), name, attributes))  # type: ignore[arg-type]
        return name

    def finish(self, *outputs: str) -> Graph:
        """Return the verified graph."""
        return verify(Graph(self._name, tuple(self._nodes), self._weights, self._inputs, outputs))
