"""A graph <-> one safetensors file of ours; docs/format.md describes it for writers of other readers.

Nothing in a file is trusted: a checksum finds damage, and every length, name and shape is checked before it is used, so that
a file made by somebody else is refused as well, in bounded time and memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.artifacts import encodings
from mlperf_opt.artifacts.container import Content, about, from_bytes, read, to_bytes, write
from mlperf_opt.artifacts.context import ContextDecoder, ContextEncoder
from mlperf_opt.artifacts.envelope import OWN, Envelope, is_model, open_envelope
from mlperf_opt.artifacts.layout import MALFORMED, MAX_JSON_BYTES, Layout, read_layout
from mlperf_opt.artifacts.payload import Reader
from mlperf_opt.errors import ArtifactError
from mlperf_opt.graph import Graph, arrays, graph_hash, rebuild, split_name, structure, verify
from mlperf_opt.ops import Spec

Array = NDArray[Any]

_NATIVE = "native"  # the encoding of an array that is a safetensors tensor of its own
_PRODUCT = "product"  # the encoding of a scale that the reader multiplies from two others
_CONTEXT = "context"  # the encoding of all arrays that share the stream at the end of the packed bytes
_NATIVE_BYTES = 64  # below, the ~70 bytes that a tensor costs in the header aren't worth it
_STREAM_PLACES = 256  # a smaller array joins the stream but doesn't open it: a zero point isn't worth loading the coder
_DTYPES = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)} | {"float16", "float32", "float64"}


@dataclass(frozen=True)
class SavedModel:
    """A model file that was read back and found equal to its graph.

    Attributes:
        path: where it is.
        file_bytes: its size.
        weights_bytes: the bytes in it that the weights need: codes, scales, zero points, probability tables.
        sha256: of the whole file, hexadecimal.
    """

    path: Path
    file_bytes: int
    weights_bytes: int
    sha256: str


def save_graph(graph: Graph, path: Path) -> SavedModel:
    """Write ``graph`` to ``path``, read it back from the disk, and compare. The same graph gives the same bytes.

    Raises:
        ArtifactError: it can't be written, or doesn't read back as the same graph; an old file is then still there.
    """
    identity = graph_hash(graph)

    def check(written: bytes) -> None:
        if graph_hash(parse(from_bytes(written), written)) != identity:
            raise ArtifactError("it holds another graph")

    with about(path):
        envelope = _to_envelope(graph)
        data = to_bytes(envelope.to_content())
    sha256 = write(path, data, check)
    return SavedModel(path, len(data), envelope.weights_bytes, sha256)


def load_graph(path: Path) -> Graph:
    """Return the verified graph in a file.

    Raises:
        ArtifactError: the file is missing, damaged, or not ours; the message names the path and what is wrong.
    """
    data = read(path)
    with about(path):
        return parse(from_bytes(data), data)


def is_model_file(path: Path) -> bool:
    """Whether the file holds a graph of ours (else it is a safetensors file of plain tensors).

    Raises:
        ArtifactError: it can't be read, or is no safetensors file.
    """
    data = read(path)
    with about(path):
        return is_model(from_bytes(data))


# graph -> file


def _to_envelope(graph: Graph) -> Envelope:
    stored = arrays(graph)
    products = _products(graph, stored)
    native: dict[str, Array] = {}
    packed = bytearray()
    chosen: list[str | list[str]] = []
    stream = ContextEncoder()
    for name, array in stored.items():
        if str(array.dtype) not in _DTYPES:
            raise ArtifactError(f"array {name!r}: a model file can't hold the dtype {array.dtype}")
        if name in products:
            chosen.append([_PRODUCT, *products[name]])
            continue
        encoding, data = encodings.encode(array)
        trial = stream.offer(array) if stream.is_open or array.size >= _STREAM_PLACES else None
        if trial is not None and trial.bits < 8 * len(data):
            stream.accept(trial)
            chosen.append(_CONTEXT)
        elif encoding == "raw" and array.nbytes >= _NATIVE_BYTES and name != OWN:
            native[name] = array
            chosen.append(_NATIVE)
        else:
            packed += data
            chosen.append(encoding)
    return Envelope(Layout(structure(graph), chosen).to_text(), bytes(packed) + stream.finish(), native)


def _products(graph: Graph, stored: Mapping[str, Array]) -> dict[str, tuple[str, str]]:
    """Scales of int32 biases that are, bit for bit, the float32 product of their node's x_scale and w_scale."""
    found: dict[str, tuple[str, str]] = {}
    factors: set[str] = set()
    for node in graph.nodes:
        arguments = dict(zip((a.rstrip("?") for a in node.definition.arguments), node.inputs, strict=False))
        name = f"{split_name(arguments.get('bias', ''))[0]}:scale"
        pair = (arguments.get("x_scale", ""), arguments.get("w_scale", ""))
        if name in stored and name not in factors and all(_is_factor(f, stored, found) for f in pair):
            product = _multiply(stored[pair[0]], stored[pair[1]])
            if product.shape == stored[name].shape and product.tobytes() == stored[name].tobytes():
                found[name] = pair
                factors.update(pair)
    return found


def _is_factor(name: str, stored: Mapping[str, Array], products: Mapping[str, tuple[str, str]]) -> bool:
    """A factor is stored itself, so that nobody has to order the products."""
    return name in stored and name not in products and stored[name].dtype == np.float32


# file -> graph


def parse(content: Content, data: bytes) -> Graph:
    """Return the verified graph in a file.

    Args:
        content: what safetensors reads in the file.
        data: the file's bytes.

    Raises:
        ArtifactError: the file is damaged or not ours. The message doesn't name the path.
    """
    envelope = open_envelope(content, data, MAX_JSON_BYTES)
    layout = read_layout(envelope.layout, len(data))
    try:
        graph = verify(rebuild(layout.structure, _read_arrays(layout, envelope.native, envelope.packed)))
        is_canonical = json.dumps(structure(graph)) == json.dumps(layout.structure)
    except MALFORMED as error:
        raise ArtifactError(f"its graph is not legal: {error}") from None
    if not is_canonical:
        raise ArtifactError("its graph is not written as this program writes it")
    return graph


def _read_arrays(layout: Layout, native: Mapping[str, Array], packed: bytes) -> dict[str, Array]:
    reader = Reader(packed)
    rest = dict(native)
    found: dict[str, Array] = {}
    products: dict[str, list[str]] = {}
    in_stream: list[str] = []
    for (name, spec), encoding in zip(layout.specs.items(), layout.encodings, strict=True):
        if encoding == _NATIVE:
            found[name] = _native(name, spec, rest)
        elif isinstance(encoding, list) and encoding[:1] == [_PRODUCT]:
            products[name] = encoding[1:]
        elif encoding == _CONTEXT:
            in_stream.append(name)
        else:
            found[name] = encodings.decode(encoding, reader, spec)
    if in_stream:
        found |= _read_stream({name: layout.specs[name] for name in in_stream}, reader.take(reader.remaining))
    if rest or reader.remaining:
        raise ArtifactError(f"it holds {len(rest)} tensors and {reader.remaining} packed bytes that its graph doesn't need")
    return found | {name: _product(name, factors, found) for name, factors in products.items()}


def _read_stream(specs: Mapping[str, Spec], stream: bytes) -> dict[str, Array]:
    decoder = ContextDecoder(stream)
    found = {
        name: decoder.decode(tuple(int(dim) for dim in spec.shape), np.dtype(spec.dtype)) for name, spec in specs.items()
    }
    decoder.finish()
    return found


def _native(name: str, spec: Spec, tensors: dict[str, Array]) -> Array:
    array = tensors.pop(name, None)
    if array is None or (array.shape, str(array.dtype)) != (spec.shape, spec.dtype):
        raise ArtifactError(f"its tensor {name!r} is missing or no {spec}")
    return array


def _product(name: str, factors: list[str], found: Mapping[str, Array]) -> Array:
    known = [found[factor] for factor in factors if isinstance(factor, str) and factor in found]
    if len(factors) != 2 or len(known) != 2 or any(array.dtype != np.float32 for array in known):
        raise ArtifactError(f"array {name!r} must be the product of two stored float32 arrays, not of {factors}")
    return _multiply(*known)


def _multiply(left: Array, right: Array) -> Array:
    with np.errstate(all="ignore"):  # a scale of a foreign file may overflow; verify then refuses it
        return np.asarray(left * right)
