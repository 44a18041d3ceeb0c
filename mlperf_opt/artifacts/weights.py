"""Weights by name: plain safetensors files of arrays, and the step from a file of weights into a network."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.artifacts.container import Content, about, from_bytes, read, to_bytes, write
from mlperf_opt.artifacts.envelope import FORMAT, is_model
from mlperf_opt.artifacts.model_file import parse
from mlperf_opt.errors import ArtifactError, GraphError
from mlperf_opt.graph import Dense, Graph, Weight, verify

Array = NDArray[Any]

_SHOWN = 3  # names in a message
_POSITIONS = {"learned", "sinusoidal", "rotary"}


def save_arrays(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> str:
    """Write a plain safetensors file (a checkpoint, say), all or nothing, and return its SHA-256.

    Args:
        path: an old file there stays intact unless everything succeeds.
        arrays: any shapes, contiguous or not; bool, integers and floats.
        metadata: text by name.

    Raises:
        ArtifactError: it can't be written, or doesn't read back as it was.
    """
    with about(path):
        content = Content(arrays, metadata)
        if is_model(content):
            raise ArtifactError(f"the metadata {FORMAT} is kept for model files")
        data = to_bytes(content)

    def check(written: bytes) -> None:
        content = from_bytes(written)
        same = content.metadata == dict(metadata) and content.tensors.keys() == arrays.keys()
        if not same or not all(_equal(content.tensors[name], array) for name, array in arrays.items()):
            raise ArtifactError("it holds other arrays")

    return write(path, data, check)


def _equal(left: Array, right: Array) -> bool:
    return (left.shape, left.dtype, left.tobytes()) == (right.shape, right.dtype, right.tobytes())


def load_arrays(path: Path) -> dict[str, Array]:
    """Return the tensors of any safetensors file by name, read-only; bfloat16 as float32.

    Raises:
        ArtifactError: it can't be read, or is no safetensors file.
    """
    return dict(_load(path).tensors)


def load_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of any safetensors file. Errors as `load_arrays`."""
    return dict(_load(path).metadata)


def _load(path: Path) -> Content:
    data = read(path)
    with about(path):
        return from_bytes(data)


def load_weights(path: Path, graph: Graph) -> Graph:
    """Return ``graph`` with all its parameters taken from a file, as float32, and with the tokenizer of a model file.

    Args:
        path: a model file of ours with float weights, or any safetensors file of plain tensors (exported from PyTorch, say).
        graph: the network; its `Graph.parameters` say which names and shapes the file must have.

    Raises:
        ArtifactError: the file can't be read, is quantized, lacks a parameter, has one too many or one of another shape, or
            is of a network that computes something else with them.
    """
    data = read(path)
    with about(path):
        content = from_bytes(data)
        model = parse(content, data) if is_model(content) else None
        found = _float_parameters(model) if model else content.tensors
        needed = {name: weight.values.shape for name, weight in graph.parameters().items()}
        _check_names(found, needed)
        if model:
            _check_nodes(model, graph)
        weights = {name: Weight(_as_float32(name, found[name], shape)) for name, shape in needed.items()}
        try:
            return verify(replace(graph.with_weights(weights), tokenizer=model.tokenizer if model else None))
        except GraphError as error:
            raise ArtifactError(str(error)) from None


def _float_parameters(graph: Graph) -> dict[str, Array]:
    parameters = graph.parameters()
    if not all(isinstance(weight.encoding, Dense) for weight in parameters.values()):
        raise ArtifactError(
            "a quantized model, whose codes can't be loaded into a float network; give a file of float weights"
        )
    return {name: weight.values for name, weight in parameters.items()}


def _check_names(found: Iterable[str], needed: Iterable[str]) -> None:
    missing, extra = sorted(set(needed) - set(found)), sorted(set(found) - set(needed))
    if missing:
        near = difflib.get_close_matches(missing[0], extra, n=1, cutoff=0.5)
        hint = f" (the file has {near[0]!r})" if near else ""
        raise ArtifactError(f"it lacks {len(missing)} of the network's weights: {_list(missing)}{hint}")
    if extra:
        raise ArtifactError(f"it has {len(extra)} tensors that the network doesn't know: {_list(extra)}")


def _check_nodes(found: Graph, needed: Graph) -> None:
    """Weights don't show how many heads they make, or which of two positions without weights they were trained with."""
    theirs, ours = ({n.op.removesuffix("_positions") for n in g.nodes} & _POSITIONS for g in (found, needed))
    if theirs != ours:
        made, has = (" and ".join(sorted(kinds)) or "no" for kinds in (theirs, ours))
        raise ArtifactError(f"it was trained with {made} positions; the network has {has} positions")
    nodes = {node.output: node.attributes for node in found.nodes}
    for node in sorted(needed.nodes, key=lambda n: "heads" not in n.attributes):  # the rest follows from them
        for name, value in node.attributes.items():
            made = nodes.get(node.output, {}).get(name, value)
            if made != value and name != "context":  # a longer text than that of the training is the user's affair
                raise ArtifactError(f"{node.output} was trained with {name}={made}; the network has {name}={value}")


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _as_float32(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    if array.dtype.kind != "f":
        raise ArtifactError(f"tensor {name!r} is {array.dtype}; weights must be float")
    if array.shape != shape:
        raise ArtifactError(f"tensor {name!r} has the shape {array.shape}; the network needs {shape}")
    with np.errstate(over="ignore"):  # a float64 too large becomes infinite, which verify refuses
        return array.astype(np.float32)
