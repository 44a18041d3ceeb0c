"""A graph's structure as plain data (JSON) and back; its identity as a hash. The weights' bytes are not part of the JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mlperf_opt.errors import GraphError
from mlperf_opt.graph.graph import Graph, Node, State
from mlperf_opt.graph.weight import Affine, Array, Weight
from mlperf_opt.ops import Spec


def structure(graph: Graph) -> dict[str, Any]:
    """Return all of the graph but its arrays, as JSON-ready data in a fixed order."""
    return {
        "name": graph.name,
        "inputs": [[name, *_spec(spec)] for name, spec in graph.inputs.items()],
        "outputs": list(graph.outputs),
        "state": [[s.name, *_spec(s.spec), s.update] for s in graph.state],
        "nodes": [[n.op, list(n.inputs), n.output, dict(sorted(n.attributes.items()))] for n in graph.nodes],
        "weights": [[name, *_encoding(weight)] for name, weight in graph.weights.items()],
    }


def _spec(spec: Spec) -> list[Any]:
    return [list(spec.shape), spec.dtype]


def _encoding(weight: Weight) -> list[Any]:
    shape, dtype = list(weight.values.shape), str(weight.values.dtype)
    if isinstance(weight.encoding, Affine):
        return [shape, dtype, {"axis": weight.encoding.axis, "bits": weight.encoding.bits}]
    return [shape, dtype, None]


def arrays(graph: Graph) -> dict[str, Array]:
    """Return every stored array by the name that `rebuild` takes: ``weight``, and ``weight:scale`` of an affine one."""
    found: dict[str, Array] = {}
    for name, weight in graph.weights.items():
        found[name] = weight.values
        if isinstance(weight.encoding, Affine):
            found[f"{name}:scale"] = weight.encoding.scale
    return found


def array_specs(data: Mapping[str, Any]) -> dict[str, Spec]:
    """Return name -> spec of the arrays that a graph with this structure needs, in the order of `arrays`."""
    specs: dict[str, Spec] = {}
    for name, shape, dtype, affine in data["weights"]:
        specs[name] = Spec(tuple(shape), dtype)
        if affine is not None:
            axis = affine["axis"]
            specs[f"{name}:scale"] = Spec(() if axis is None else (shape[axis],), "float32")
    return specs


def rebuild(data: Mapping[str, Any], stored: Mapping[str, Array]) -> Graph:
    """The inverse of `structure` and `arrays`; the caller verifies the graph.

    Raises:
        GraphError: the data has not the form that `structure` gives it.
    """
    try:
        weights = {}
        for name, _, _, affine in data["weights"]:
            if affine is None:
                weights[name] = Weight(stored[name])
            else:
                encoding = Affine(stored[f"{name}:scale"], affine["axis"], int(affine["bits"]))
                weights[name] = Weight(stored[name], encoding)
        return Graph(
            name=str(data["name"]),
            nodes=tuple(Node(op, tuple(inputs), out, attributes) for op, inputs, out, attributes in data["nodes"]),
            weights=weights,
            inputs={name: Spec(tuple(shape), dtype) for name, shape, dtype in data["inputs"]},
            outputs=tuple(data["outputs"]),
            state=tuple(State(name, Spec(tuple(shape), dtype), update) for name, shape, dtype, update in data["state"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise GraphError(f"the structure of the graph is malformed ({error})") from None


def graph_hash(graph: Graph) -> str:
    """SHA-256 of structure and arrays: equal exactly if two graphs are the same."""
    digest = hashlib.sha256(json.dumps(structure(graph), separators=(",", ":")).encode())
    for name, array in sorted(arrays(graph).items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
