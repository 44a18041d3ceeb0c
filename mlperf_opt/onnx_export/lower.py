"""Graph -> an ONNX model as plain data: named operators, initialisers, typed inputs and outputs.

Each op brings its own mapping (`OpDef.onnx`); here its local names become those of the model, and weights initialisers:

    float32     as it is
    float16     half in the file, Cast to float32 where it is read
    int8, int32 codes and scales; DequantizeLinear where an op reads real values, as they are where it reads codes

Names: values and weights keep theirs; what a mapping adds to node ``fc1`` is called ``fc1:real_x`` (``:`` occurs in no name
of a graph). A state ``s`` is read from the input ``past.s`` and leaves as the output ``present.s``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Affine, Dense, Graph, Node, split_name
from mlperf_opt.ops import Spec
from mlperf_opt.ops.onnx_form import OUT, OnnxNode, cast, node

Array = NDArray[Any]

_TRANSPOSED = ".T"
_PAST, _PRESENT = "past.", "present."


@dataclass(frozen=True)
class OnnxModel:
    """A model as plain data.

    Attributes:
        name: of the graph.
        nodes: in topological order; their inputs are names alone.
        initializers: name -> array.
        inputs: name -> spec; a named dimension is a dynamic axis of that name.
        outputs: the same.
    """

    name: str
    nodes: tuple[OnnxNode, ...]
    initializers: dict[str, Array]
    inputs: dict[str, Spec]
    outputs: dict[str, Spec]


def input_name(state: str) -> str:
    """Return the name of the input that a state is read from."""
    return _PAST + state


def output_name(state: str) -> str:
    """Return the name of the output that a state leaves by."""
    return _PRESENT + state


def lower(graph: Graph) -> OnnxModel:
    """Return ``graph`` as an ONNX model.

    Raises:
        GraphError: an op or a weight without an ONNX counterpart, an output that is an input too, or a name that ends up
            used twice.
    """
    lowering = _Lowering(graph)
    for graph_node in graph.nodes:
        lowering.add(graph_node)
    return lowering.finish()


@dataclass
class _Lowering:
    graph: Graph
    nodes: list[OnnxNode] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)
    # value of the graph -> its name in the model
    names: dict[str, str] = field(default_factory=dict)
    # contents of a constant -> its name
    constants: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.graph
        made = {n.output for n in graph.nodes}
        for name in graph.outputs:
            if name not in made:
                raise GraphError(f"{graph.name}: the output {name!r} is made by no node, which ONNX doesn't allow")
        self.names |= {name: name for name in (*graph.inputs, *made)}
        self.names |= {state.name: input_name(state.name) for state in graph.state}
        updates = [state.update for state in graph.state]
        for state in graph.state:
            if state.update in made and state.update not in graph.outputs and updates.count(state.update) == 1:
                self.names[state.update] = output_name(state.name)

    def add(self, graph_node: Node) -> None:
        """Append the operators that compute ``graph_node``."""
        definition, specs = graph_node.definition, self.graph.specs
        if definition.onnx is None:
            raise GraphError(f"node {graph_node.output!r}: {graph_node.op} has no ONNX counterpart")
        try:
            form = definition.onnx(*(specs[n] if n else None for n in graph_node.inputs), **graph_node.attributes)
        except GraphError as error:
            raise GraphError(f"node {graph_node.output!r}: {error}") from None
        local = {OUT: self.names[graph_node.output]}
        arguments = dict(zip((a.rstrip("?") for a in definition.arguments), graph_node.inputs, strict=False))
        for step in form:
            target = local.setdefault(step.output, f"{graph_node.output}:{step.output}")
            inputs = [self._input(source, local, arguments) for source in step.inputs]
            self._emit(OnnxNode(step.kind, tuple(inputs), target, step.attributes))

    def _input(self, source: str | Array, local: dict[str, str], arguments: dict[str, str]) -> str:
        if not isinstance(source, str):
            return self._constant(source)
        if source in local:
            return local[source]
        argument = arguments[source.removesuffix(_TRANSPOSED)] if source else ""
        return self._argument(argument, source.endswith(_TRANSPOSED)) if argument else ""

    def _argument(self, argument: str, transposed: bool) -> str:
        """Return the name in the model of what a node reads: a value, or a weight or a part of one."""
        if argument in self.names:
            name = self.names[argument]
            return self._once(node("Transpose", name, to=f"{name}:T", perm=[1, 0])) if transposed else name
        weight_name, part = split_name(argument)
        if transposed and len(self.graph.readers(weight_name)) > 1:  # stored once, whoever reads it in whatever order
            name = self._argument(argument, False)
            return self._once(node("Transpose", name, to=f"{name}:T", perm=[1, 0]))
        weight = self.graph.weights[weight_name]
        if part == "scale":
            return self._store(f"{weight_name}:scale", weight.part("scale"))
        stored = weight_name + (":T" if transposed else "")
        values = weight.values.T if transposed else weight.values
        is_real = isinstance(weight.encoding, Dense) and values.dtype == np.float32
        if part == "codes" or is_real:
            return self._store(stored, values)
        if isinstance(weight.encoding, Dense):
            return self._once(cast(self._store(stored, values), "float32", to=f"{stored}:real"))
        if isinstance(weight.encoding, Affine) and values.dtype in (np.int8, np.int32):
            scale, axis = self._store(f"{weight_name}:scale", weight.encoding.scale), weight.encoding.axis
            along = {} if axis is None else {"axis": values.ndim - 1 - axis if transposed else axis}
            # onnxruntime's exact int8 mode takes an absent zero point for a single one, and fails on many scales
            zero = self._constant(np.zeros(weight.encoding.scale.shape, values.dtype))
            codes = self._store(stored, values)
            return self._once(node("DequantizeLinear", codes, scale, zero, to=f"{stored}:real", **along))
        # ONNX has no operator for the encoding: the file holds what it means
        dense = weight.dense()
        return self._store(f"{stored}:real", dense.T if transposed else dense)

    def _emit(self, new: OnnxNode) -> None:
        """Append an operator; a product of constants is multiplied here: an engine wants its scales as initialisers."""
        if new.kind == "Mul" and all(name in self.initializers for name in new.inputs):
            one, other = (self.initializers[str(name)] for name in new.inputs)
            self._store(new.output, one * other)
        else:
            self.nodes.append(new)

    def _once(self, new: OnnxNode) -> str:
        """Append an operator unless another node had it appended; return its output."""
        if all(known.output != new.output for known in self.nodes):
            self.nodes.append(new)
        return new.output

    def _store(self, name: str, array: Array) -> str:
        self.initializers.setdefault(name, array)
        return name

    def _constant(self, array: Array) -> str:
        """Store a constant once, however often it is used; but each int8 one, a zero point of weights, by itself.

        On some CPUs onnxruntime rewrites int8 weights to uint8, zero points too, and fails on a shared one.
        """
        key = (str(array.dtype), array.shape, array.tobytes())
        if array.dtype == np.int8:
            key = (*key[:2], str(len(self.constants)).encode())
        name = self.constants.setdefault(key, f":constant{len(self.constants)}")
        return self._store(name, array)

    def finish(self) -> OnnxModel:
        graph, specs = self.graph, self.graph.specs
        outputs = {self.names[name]: specs[name] for name in graph.outputs}
        for state in graph.state:
            name = output_name(state.name)
            if self.names[state.update] != name:
                self.nodes.append(node("Identity", self.names[state.update], to=name))
            outputs[name] = state.spec
        inputs = [*graph.inputs.items(), *((input_name(state.name), state.spec) for state in graph.state)]
        read = {str(name) for n in self.nodes for name in n.inputs}
        stored = {name: array for name, array in self.initializers.items() if name in read}
        _check_names([*(name for name, _ in inputs), *stored, *(n.output for n in self.nodes)])
        return OnnxModel(graph.name, tuple(self.nodes), stored, dict(inputs), outputs)


def _check_names(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise GraphError(f"the name {name!r} would be used twice in the ONNX model: rename the node or state")
        seen.add(name)
