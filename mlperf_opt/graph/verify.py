"""The rules of a legal graph, checked after every pass and after every read from a file."""

from __future__ import annotations

import numpy as np

from mlperf_opt.data import tokenizer_from_data
from mlperf_opt.errors import DataError, GraphError
from mlperf_opt.graph.graph import Graph
from mlperf_opt.graph.weight import MAX_CENTROIDS, Affine, Array, Codebook, Weight, split_name
from mlperf_opt.ops.base import is_whole


def verify(graph: Graph) -> Graph:
    """Return ``graph`` if it is legal.

    Raises:
        GraphError: a name used twice or with a reserved sign, a wrong number of inputs, a value read before it is made,
            shapes that don't fit, an unused or non-finite weight, a missing output or state update, a buffer that is
            read after being overwritten.
    """
    _check_names(graph)
    _check_weights(graph)  # before the specs: they read the encodings
    for node in graph.nodes:
        arguments = node.definition.arguments
        least = max((i for i, a in enumerate(arguments, start=1) if not a.endswith("?")), default=0)
        if not least <= len(node.inputs) <= len(arguments):
            takes = f"{least} to {len(arguments)}" if least < len(arguments) else str(least)
            raise GraphError(f"node {node.output!r}: {node.op} takes {takes} inputs, got {len(node.inputs)}")
        for name, argument in zip(node.inputs, arguments, strict=False):
            if not name and not argument.endswith("?"):
                raise GraphError(f"node {node.output!r}: the argument {argument!r} of {node.op} is missing")
        for key, value in node.attributes.items():
            if not isinstance(value, int | float | bool | str):
                raise GraphError(f"node {node.output!r}: the attribute {key!r} is no plain number or text: {value!r}")
    specs = graph.specs
    for name in graph.outputs:
        if name not in specs:
            raise GraphError(f"output {name!r} is made by no node")
    for state in graph.state:
        if state.update not in specs or specs[state.update] != state.spec:
            raise GraphError(f"state {state.name!r}: its update {state.update!r} must be a value of {state.spec}")
    _check_in_place(graph)
    _check_tokenizer(graph)
    return graph


def _check_tokenizer(graph: Graph) -> None:
    if graph.tokenizer is None:
        return
    try:
        size = tokenizer_from_data(graph.tokenizer).size
    except DataError as error:
        raise GraphError(str(error)) from None
    classes = graph.specs[graph.outputs[0]].shape[-1]
    if classes != size:
        raise GraphError(f"its tokenizer has {size} tokens, but its output {classes} classes")


def _check_names(graph: Graph) -> None:
    made = [*graph.inputs, *(s.name for s in graph.state), *(n.output for n in graph.nodes), *graph.weights]
    seen: set[str] = set()
    for name in made:
        if not name or ":" in name:
            raise GraphError(f"{name!r} is no legal name: it is empty or holds ':'")
        if name in seen:
            raise GraphError(f"the name {name!r} is used twice")
        seen.add(name)


def _check_weights(graph: Graph) -> None:
    used = {split_name(name)[0] for node in graph.nodes for name in node.inputs}
    for name, weight in graph.weights.items():
        if name not in used:
            raise GraphError(f"weight {name!r} is used by no node")
        _check_values(name, weight)


def _check_values(name: str, weight: Weight) -> None:
    arrays = [weight.values]
    if isinstance(weight.encoding, Affine):
        _check_affine(name, weight.values, weight.encoding)
        arrays.append(weight.encoding.scale)
    if isinstance(weight.encoding, Codebook):
        _check_codebook(name, weight.values, weight.encoding.centroids)
        arrays.append(weight.encoding.centroids)
    for array in arrays:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise GraphError(f"weight {name!r} holds a value that is not finite")


def _check_affine(name: str, codes: Array, affine: Affine) -> None:
    if not is_whole(affine.bits, 2) or affine.bits > 32:
        raise GraphError(f"weight {name!r}: bits={affine.bits} must be a whole number in 2..32")
    if affine.axis is not None and not (is_whole(affine.axis, 0) and affine.axis < codes.ndim):
        raise GraphError(f"weight {name!r}: axis={affine.axis} is no axis of {codes.ndim}")
    shape = () if affine.axis is None else codes.shape[affine.axis : affine.axis + 1]
    if affine.scale.shape != shape or affine.scale.dtype != np.float32 or not (affine.scale > 0).all():
        raise GraphError(f"weight {name!r}: its scales must be positive float32 of shape {shape}")
    limit = affine.limit
    if codes.dtype.kind != "i" or (codes.size and max(-int(codes.min()), int(codes.max())) > limit):
        raise GraphError(f"weight {name!r}: its codes must be integers in -{limit}..{limit}")


def _check_codebook(name: str, codes: Array, centroids: Array) -> None:
    count = centroids.size
    if centroids.ndim != 1 or centroids.dtype != np.float32 or not 1 <= count <= MAX_CENTROIDS:
        raise GraphError(f"weight {name!r}: its codebook must be 1 to {MAX_CENTROIDS} float32 centroids")
    if not (centroids[1:] > centroids[:-1]).all():
        raise GraphError(f"weight {name!r}: its centroids must ascend, each once")
    if codes.dtype != np.uint8 or (codes.size and int(codes.max()) >= count):
        raise GraphError(f"weight {name!r}: its codes must be uint8 indices of {count} centroids")


def _check_in_place(graph: Graph) -> None:
    """A buffer that an op overwrites must be a state, and nobody may read its old content afterwards."""
    states = {state.name: state.update for state in graph.state}
    for place, node in enumerate(graph.nodes):
        if node.definition.in_place is None:
            continue
        target = node.argument(node.definition.in_place)
        if states.get(target) != node.output:
            raise GraphError(f"node {node.output!r} overwrites {target!r}, which is no state that it updates")
        for later in graph.nodes[place + 1 :]:
            if target in later.inputs:
                raise GraphError(f"node {later.output!r} reads {target!r} after {node.output!r} has overwritten it")
