"""The outer file: how layout, packed bytes and native tensors stand in a safetensors file under one checksum.

Version 2 is written; version 1, with its longer header and checksum, is still read.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.artifacts.container import Content, to_bytes
from mlperf_opt.artifacts.payload import Reader, varint
from mlperf_opt.artifacts.words import DICTIONARY
from mlperf_opt.errors import ArtifactError

Array = NDArray[Any]

FORMAT = "mlperf_opt"  # the key of the metadata, whose value is the version
VERSION = "2"
OWN = "g"  # the tensor that is no array of the graph
_OLD_VERSION = "1"
_OLD_OWN = "graph", "packed"
# A reader tells by the checksum whether a file is as it was written. Against accidents 64 bits are plenty; nobody is kept
# from making a new one by more.
_DIGEST_BYTES = 8
_OLD_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Envelope:
    """What a model file carries.

    Attributes:
        layout: JSON text, bounded in size.
        packed: the packed arrays.
        native: arrays that are tensors of their own.
    """

    layout: bytes
    packed: bytes
    native: Mapping[str, Array]

    @property
    def weights_bytes(self) -> int:
        """The bytes that the arrays take."""
        return len(self.packed) + sum(array.nbytes for array in self.native.values())

    def to_content(self) -> Content:
        """Return it as the tensors and metadata of a safetensors file."""
        compressed = deflate(self.layout)
        digest = checksum(compressed, self.packed, self.native)[:_DIGEST_BYTES]
        own = digest + varint(len(compressed)) + compressed + self.packed
        return Content({OWN: np.frombuffer(own, np.uint8), **self.native}, {FORMAT: VERSION})


def is_model(content: Content) -> bool:
    """Whether the content says that it is a graph of ours."""
    return FORMAT in content.metadata or content.metadata.get("format") == FORMAT


def open_envelope(content: Content, data: bytes, limit: int) -> Envelope:
    """The inverse of `Envelope.to_content`, for every version.

    Args:
        content: what safetensors reads in the file.
        data: the file's bytes.
        limit: the largest layout in bytes.

    Raises:
        ArtifactError: the file is damaged or not ours. The message doesn't name the path.
    """
    if not is_model(content):
        raise ArtifactError(f"a safetensors file, but no model of ours: its metadata has no {FORMAT!r}")
    version = content.metadata.get(FORMAT, content.metadata.get("version"))
    if version not in (VERSION, _OLD_VERSION):
        raise ArtifactError(
            f"the version of its format is {version!r}; this program reads versions {_OLD_VERSION!r} and {VERSION!r}"
        )
    if to_bytes(content) != data:  # damage that safetensors and JSON put up with
        raise ArtifactError("damaged: its header is not as this program writes it")
    if version == _OLD_VERSION:
        head, packed = (_row_of_bytes(content, name) for name in _OLD_OWN)
        digest, compressed = head[:_OLD_DIGEST_BYTES], head[_OLD_DIGEST_BYTES:]
        native = _without(content, _OLD_OWN)
    else:
        reader = Reader(_row_of_bytes(content, OWN))
        digest = reader.take(_DIGEST_BYTES)
        compressed = reader.take(reader.varint())
        packed = reader.take(reader.remaining)
        native = _without(content, (OWN,))
    if checksum(compressed, packed, native)[: len(digest)] != digest or len(digest) < _DIGEST_BYTES:
        raise ArtifactError("damaged: its checksum is wrong")
    return Envelope(inflate(compressed, limit, is_old=version == _OLD_VERSION), packed, native)


def _row_of_bytes(content: Content, name: str) -> bytes:
    array = content.tensors.get(name, np.zeros(0, np.uint8))
    if array.dtype != np.uint8 or array.ndim != 1:
        raise ArtifactError(f"damaged: its tensor {name!r} must be a row of bytes")
    return array.tobytes()


def _without(content: Content, names: tuple[str, ...]) -> dict[str, Array]:
    return {name: array for name, array in content.tensors.items() if name not in names}


def checksum(compressed: bytes, packed: bytes, native: Mapping[str, Array]) -> bytes:
    """SHA-256 over every part with its length (uint64) before it; the native tensors in the order of their names."""
    parts = [compressed, packed]
    for name, array in sorted(native.items()):
        parts += [json.dumps([name, str(array.dtype), list(array.shape)]).encode(), array.tobytes()]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def deflate(layout: bytes) -> bytes:
    """Compress a layout: raw deflate with a preset dictionary. zlib's own header and checksum would be 6 bytes more."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return compressor.compress(layout) + compressor.flush()


def inflate(compressed: bytes, limit: int, *, is_old: bool = False) -> bytes:
    """The inverse of `deflate`, or of the zlib stream of version 1.

    Raises:
        ArtifactError: bytes that no writer makes, or more than ``limit`` bytes of text.
    """
    decompressor = zlib.decompressobj() if is_old else zlib.decompressobj(-zlib.MAX_WBITS, zdict=DICTIONARY)
    try:
        text = decompressor.decompress(compressed, limit + 1)
    except zlib.error as error:
        raise ArtifactError(f"the structure of its graph is malformed: {error}") from None
    if len(text) > limit:
        raise ArtifactError(f"the structure of its graph is malformed: it has more than {limit} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise ArtifactError("the structure of its graph is malformed: it is cut off, or goes on behind its end")
    return text
