"""A graph's structure as plain data (JSON) and back; its identity as a hash. The weights' bytes are not part of the JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlperf_opt.errors import GraphError
from mlperf_opt.graph.graph import Graph, Node, State
from mlperf_opt.graph.weight import MAX_CENTROIDS, Affine, Array, Codebook, Dense, Encoding, Weight
from mlperf_opt.ops import Spec
from mlperf_opt.ops.base import is_whole


def structure(graph: Graph) -> dict[str, Any]:
    """Return all of the graph but its arrays, as JSON-ready data in a fixed order."""
    # without a tokenizer a graph has no such key, as in files from before there were any
    tokenizer = {} if graph.tokenizer is None else {"tokenizer": dict(graph.tokenizer)}
    return {
        "name": graph.name,
        "inputs": [[name, *_spec(spec)] for name, spec in graph.inputs.items()],
        "outputs": list(graph.outputs),
        "state": [[s.name, *_spec(s.spec), s.update] for s in graph.state],
        "nodes": [[n.op, list(n.inputs), n.output, dict(sorted(n.attributes.items()))] for n in graph.nodes],
        "weights": [[name, *_encoding(weight)] for name, weight in graph.weights.items()],
        **tokenizer,
    }


def _spec(spec: Spec) -> list[Any]:
    return [list(spec.shape), spec.dtype]


def _encoding(weight: Weight) -> list[Any]:
    shape, dtype = list(weight.values.shape), str(weight.values.dtype)
    if isinstance(weight.encoding, Affine):
        return [shape, dtype, {"axis": weight.encoding.axis, "bits": weight.encoding.bits}]
    if isinstance(weight.encoding, Codebook):
        return [shape, dtype, {"codebook": len(weight.encoding.centroids)}]
    return [shape, dtype, None]


def arrays(graph: Graph) -> dict[str, Array]:
    """Return every stored array by the name `rebuild` takes: ``weight``, and ``weight:scale`` or ``weight:centroids``."""
    found: dict[str, Array] = {}
    for name, weight in graph.weights.items():
        found[name] = weight.values
        if isinstance(weight.encoding, Affine):
            found[f"{name}:scale"] = weight.encoding.scale
        if isinstance(weight.encoding, Codebook):
            found[f"{name}:centroids"] = weight.encoding.centroids
    return found


def array_specs(data: Mapping[str, Any]) -> dict[str, Spec]:
    """Return name -> spec of the arrays that a graph with this structure needs, in the order of `arrays`."""
    with _malformed():
        specs: dict[str, Spec] = {}
        for name, shape, dtype, encoding in data["weights"]:
            if name in specs:
                raise GraphError(f"the weight {name!r} stands twice in the structure of the graph")
            specs[_text(name)] = _read_spec(shape, dtype)
            if encoding is None:
                continue
            if "codebook" in encoding:
                specs[f"{name}:centroids"] = Spec((_centroids(encoding),), "float32")
            else:
                axis = encoding["axis"]
                specs[f"{name}:scale"] = Spec(() if axis is None else (shape[axis],), "float32")
        return specs


_DTYPES = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}


def _read_spec(shape: Any, dtype: Any) -> Spec:
    if not isinstance(shape, list | tuple) or not all(_is_dim(d) for d in shape) or _text(dtype) not in _DTYPES:
        raise ValueError(f"no shape and dtype: {shape!r}, {dtype!r}")
    return Spec(tuple(shape), dtype)


def _is_dim(value: Any) -> bool:
    return is_whole(value, 0) or (isinstance(value, str) and value != "")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} should be a text")
    return value


@contextmanager
def _malformed() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise GraphError(f"the structure of the graph is malformed ({error})") from None


def rebuild(data: Mapping[str, Any], stored: Mapping[str, Array]) -> Graph:
    """The inverse of `structure` and `arrays`; the caller verifies the graph.

    Raises:
        GraphError: the data has not the form that `structure` gives it, or an array is not what the data says.
    """
    for name, spec in array_specs(data).items():
        if name not in stored:
            raise GraphError(f"the array {name!r} is missing")
        found = Spec(stored[name].shape, str(stored[name].dtype))
        if found != spec:
            raise GraphError(f"the array {name!r} is {found}; the structure of the graph says {spec}")
    with _malformed():
        weights = {}
        for name, _, _, encoding in data["weights"]:
            weights[name] = Weight(stored[name], _read_encoding(name, encoding, stored))
        inputs = {_text(name): _read_spec(shape, dtype) for name, shape, dtype in data["inputs"]}
        if len(inputs) != len(data["inputs"]):
            raise ValueError("an input stands twice")
        return Graph(
            name=_text(data["name"]),
            nodes=tuple(_node(*fields) for fields in data["nodes"]),
            weights=weights,
            inputs=inputs,
            outputs=_texts(data["outputs"]),
            state=tuple(
                State(_text(name), _read_spec(shape, dtype), _text(update)) for name, shape, dtype, update in data["state"]
            ),
            tokenizer=data.get("tokenizer"),
        )


def _read_encoding(name: str, encoding: Mapping[str, Any] | None, stored: Mapping[str, Array]) -> Encoding:
    if encoding is None:
        return Dense()
    if "codebook" in encoding:
        return Codebook(stored[f"{name}:centroids"])
    return Affine(stored[f"{name}:scale"], encoding["axis"], encoding["bits"])


def _centroids(encoding: Mapping[str, Any]) -> int:
    count = encoding["codebook"]
    if not is_whole(count, 1) or count > MAX_CENTROIDS:
        raise ValueError(f"no number of centroids: {count!r}")
    return count


def _node(op: Any, inputs: Any, output: Any, attributes: Any) -> Node:
    return Node(_text(op), _texts(inputs), _text(output), {_text(key): value for key, value in attributes.items()})


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple):
        raise TypeError(f"{values!r} should be a list")
    return tuple(_text(value) for value in values)


def graph_hash(graph: Graph) -> str:
    """SHA-256 of structure and arrays: equal exactly if two graphs are the same."""
    digest = hashlib.sha256(json.dumps(structure(graph), separators=(",", ":")).encode())
    for name, array in sorted(arrays(graph).items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
