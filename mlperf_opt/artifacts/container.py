"""The safetensors layer: named arrays and a few words of metadata, written atomically, read without trusting the file.

The only module that calls the safetensors library. Its 0.8.0 writes arrays that are not contiguous wrongly and without an
error, so arrays are made contiguous here, and whatever is written is read back before it gets its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors  # noqa: TID251
from numpy.typing import NDArray
from safetensors.numpy import save  # noqa: TID251

from mlperf_opt.errors import ArtifactError

Array = NDArray[Any]

MAX_HEADER_BYTES = 8 << 20  # of JSON; a network of 10,000 tensors needs about 1 MB
MAX_FILE_BYTES = 4 << 30
_LENGTH_BYTES = 8  # a file starts with the header's length, uint64
_METADATA = "__metadata__"
# safetensors' names -> numpy's, all little-endian. BF16 is read (PyTorch exports it), never written.
_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
_WRITABLE = {str(np.dtype(dtype)) for dtype in _DTYPES.values()}


@dataclass(frozen=True)
class Content:
    """What a safetensors file holds: arrays by name and metadata."""

    tensors: Mapping[str, Array]
    metadata: Mapping[str, str]


def to_bytes(content: Content) -> bytes:
    """Return the file's bytes: the same content gives the same bytes.

    Raises:
        ArtifactError: a dtype, a name or a size that safetensors can't hold.
    """
    tensors = {}
    for name, array in content.tensors.items():
        if str(array.dtype) not in _WRITABLE:
            raise ArtifactError(f"tensor {name!r}: a file can't hold the dtype {array.dtype}")
        tensors[name] = np.ascontiguousarray(array).reshape(array.shape)
    if _METADATA in tensors:
        raise ArtifactError(f"{_METADATA!r} can't be the name of a tensor")
    try:
        # None: of an empty mapping the library makes a header that is no JSON
        data = save(tensors, dict(content.metadata) or None)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ArtifactError(f"safetensors refuses the tensors: {error}") from None
    # The library orders the metadata by a hash that differs from process to process: write the header again, sorted.
    header, start = _parse_header(data)
    metadata = dict(sorted(header.pop(_METADATA, {}).items()))
    header = {_METADATA: metadata, **header} if metadata else header
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data[start:]


def from_bytes(data: bytes) -> Content:
    """The inverse of `to_bytes`, for any safetensors file. bfloat16 becomes float32.

    Raises:
        ArtifactError: ``data`` is no safetensors file. The message doesn't name the path.
    """
    header, _ = _parse_header(data)
    try:
        found = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"no safetensors file: {error}") from None
    return Content({name: _to_array(name, found[name]) for name in sorted(found)}, header.get(_METADATA, {}))


def _to_array(name: str, tensor: Mapping[str, Any]) -> Array:
    kind, data, shape = tensor["dtype"], tensor["data"], tensor["shape"]
    try:
        if kind == "BF16":  # the upper half of a float32
            return (np.frombuffer(data, "<u2").astype("<u4") << 16).view(np.float32).reshape(shape)
        if kind in _DTYPES:
            return np.frombuffer(data, np.dtype(_DTYPES[kind])).reshape(shape)
    except ValueError as error:  # numpy's own limits: 64 axes, 2^63 elements
        raise ArtifactError(f"tensor {name!r}: {error}") from None
    raise ArtifactError(f"tensor {name!r}: dtype {kind} is not supported")


def _parse_header(data: bytes) -> tuple[dict[str, Any], int]:
    """Return the JSON header at the start of ``data`` and the offset at which the tensors begin."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or length > len(data) - _LENGTH_BYTES:
        raise ArtifactError("no safetensors file: it is shorter than its header says")
    if length > MAX_HEADER_BYTES:
        raise ArtifactError(f"no safetensors file of ours: its header has {length} bytes, the limit is {MAX_HEADER_BYTES}")
    try:
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"no safetensors file: its header is no JSON ({error})") from None
    metadata = header.get(_METADATA, {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ArtifactError("no safetensors file: its header is malformed")
    return header, _LENGTH_BYTES + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def read(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        ArtifactError: it is missing, unreadable, larger than `MAX_FILE_BYTES`, or no regular file (a pipe would block).
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ArtifactError(f"cannot read {path}: it is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"cannot read {path}: it is no regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ArtifactError(f"cannot read {path}: {status.st_size} bytes, the limit is {MAX_FILE_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ArtifactError(f"cannot read {path}: {_reason(error)}") from None


def write(path: Path, data: bytes, check: Callable[[bytes], None]) -> str:
    """Write ``data`` under a temporary name, read it back, and only then give it its name: all or nothing.

    Args:
        path: an old file there stays intact unless everything succeeds.
        data: the bytes to write.
        check: is given the bytes read back from the disk; raises `ArtifactError` if they are not what was meant.

    Returns:
        SHA-256 of the bytes read back.

    Raises:
        ArtifactError: the disk is full, the folder is missing, ...; or what ``check`` raised. Nothing is left behind.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            _write_durably(temporary, data)
            written = read(temporary)
            check(written)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot write {path}: {_reason(error)}") from None
    except ArtifactError as error:
        raise ArtifactError(f"cannot write {path}: what was written does not read back ({error})") from None
    return hashlib.sha256(written).hexdigest()


def _write_durably(path: Path, data: bytes) -> None:
    # O_EXCL: never through somebody else's link. 0o666: the user's umask decides.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextlib.contextmanager
def about(path: Path) -> Iterator[None]:
    """Put the path in front of an `ArtifactError` that doesn't name it yet."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
