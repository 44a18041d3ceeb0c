"""How one array becomes bytes: a table of lossless encodings, each with its two directions side by side.

Every encoding is exact to the bit: -0.0 and the payload of a NaN come back as they were. The writer takes the shortest.
All numbers are little-endian; what each encoding writes is given in docs/format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.artifacts import entropy
from mlperf_opt.artifacts.payload import Reader, signed
from mlperf_opt.errors import ArtifactError
from mlperf_opt.ops import Spec

Array = NDArray[Any]

_CHUNK = 1 << 16  # elements whose bits are spread out at a time; a multiple of 8, so a chunk ends at a whole byte


@dataclass(frozen=True)
class Encoding:
    """One lossless encoding of a flat array.

    Attributes:
        name: its name in files.
        encode: (n,) array -> bytes, None where it can't hold the array or would only be longer.
        decode: (reader, n, dtype) -> (n,) array; raises `ArtifactError` for bytes that no writer makes.
    """

    name: str
    encode: Callable[[Array], bytes | None]
    decode: Callable[[Reader, int, np.dtype[Any]], Array]


# raw: the elements as they are


def _raw_encode(flat: Array) -> bytes:
    return flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()


def _raw_decode(reader: Reader, count: int, dtype: np.dtype[Any]) -> Array:
    return np.frombuffer(reader.take(count * dtype.itemsize), dtype.newbyteorder("<")).astype(dtype)


# short: float32 whose lower 16 bits are all zero, as the quant pass rounds its scales


def _short_encode(flat: Array) -> bytes | None:
    if flat.dtype != np.float32:
        return None
    words = flat.view(np.uint32)
    return None if (words & 0xFFFF).any() else (words >> 16).astype("<u2").tobytes()


def _short_decode(reader: Reader, count: int, dtype: np.dtype[Any]) -> Array:
    if dtype != np.float32:
        raise ArtifactError(f"the encoding 'short' is for float32, not {dtype}")
    return (np.frombuffer(reader.take(2 * count), "<u2").astype(np.uint32) << 16).view(np.float32)


# bits: integers minus their minimum, at the smallest fixed width


def _bits_encode(flat: Array) -> bytes | None:
    if flat.dtype.kind not in "iu" or not flat.size:
        return None
    low, high = int(flat.min()), int(flat.max())
    width = (high - low).bit_length()
    if width >= 8 * flat.itemsize:
        return None
    above = flat.astype(np.uint64) - np.uint64(low % 2**64)  # modulo 2^64, so that every int64 and uint64 works
    return bytes([width]) + signed(low) + b"".join(_pack(part, width) for part in _chunks(above))


def _bits_decode(reader: Reader, count: int, dtype: np.dtype[Any]) -> Array:
    if dtype.kind not in "iu":
        raise ArtifactError(f"the encoding 'bits' is for integers, not {dtype}")
    width, low = reader.byte(), reader.signed()
    if width >= 8 * dtype.itemsize:
        raise ArtifactError(f"a packed array has {width} bits per {dtype}")
    packed = reader.take(-(-count * width // 8))
    # A width of 0 costs no bytes, so it must cost little time and memory too.
    above = np.concatenate([*_unpack(packed, count, width)]) if width and count else np.zeros(1, np.uint64)
    highest = low + int(above.max())
    if low < np.iinfo(dtype).min or highest > np.iinfo(dtype).max:
        raise ArtifactError(f"a packed array holds {low}..{highest}, too large for {dtype}")
    codes = (above + np.uint64(low % 2**64)).astype(dtype)
    return codes if width and count else np.full(count, codes)


def _chunks(flat: Array) -> Iterator[Array]:
    return (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))


def _pack(values: Array, width: int) -> bytes:
    """uint64 (n,) -> n fields of ``width`` bits, first field and highest bit first."""
    bits = np.unpackbits(values.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    return np.packbits(bits[:, 64 - width :]).tobytes()


def _unpack(packed: bytes, count: int, width: int) -> Iterator[Array]:
    """The inverse of `_pack`, a chunk at a time."""
    data = np.frombuffer(packed, np.uint8)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        fields = np.unpackbits(data[start * width // 8 :][: -(-size * width // 8)], count=size * width)
        bits = np.zeros((size, 64), np.uint8)
        bits[:, 64 - width :] = fields.reshape(size, width)
        yield np.packbits(bits, axis=1).view(">u8").astype(np.uint64).ravel()


# entropy: integers up to 255 in magnitude through a range coder


def _entropy_encode(flat: Array) -> bytes | None:
    return entropy.encode(flat) if flat.dtype.kind in "iu" else None


def _entropy_decode(reader: Reader, count: int, dtype: np.dtype[Any]) -> Array:
    if dtype.kind not in "iu":
        raise ArtifactError(f"the encoding 'entropy' is for integers, not {dtype}")
    return entropy.decode(reader, count, dtype)


# sparse: which elements are not zero, then those elements, each by one of the encodings above


def _sparse_encode(flat: Array) -> bytes | None:
    mask = _words(flat) != 0  # by bits, so that -0.0 counts as a value
    if mask.all():
        return None
    where, mask_bytes = _shortest(mask.astype(np.uint8), _SIMPLE)
    what, value_bytes = _shortest(flat[mask], _SIMPLE)
    return bytes([_SIMPLE.index(where) << 4 | _SIMPLE.index(what)]) + mask_bytes + value_bytes


def _sparse_decode(reader: Reader, count: int, dtype: np.dtype[Any]) -> Array:
    where, what = divmod(reader.byte(), 16)
    if max(where, what) >= len(_SIMPLE):
        raise ArtifactError("a packed array names an encoding that doesn't exist")
    mask = _SIMPLE[where].decode(reader, count, np.dtype(np.uint8)).astype(bool)
    flat = np.zeros(count, dtype)
    flat[mask] = _SIMPLE[what].decode(reader, int(mask.sum()), dtype)
    return flat


def _words(flat: Array) -> Array:
    """The same bytes as unsigned integers."""
    return flat.view(f"u{flat.itemsize}")


RAW = Encoding("raw", _raw_encode, _raw_decode)
# A file stores the places in this tuple: append only.
_SIMPLE = (
    RAW,
    Encoding("short", _short_encode, _short_decode),
    Encoding("bits", _bits_encode, _bits_decode),
    Encoding("entropy", _entropy_encode, _entropy_decode),
)
ENCODINGS = {encoding.name: encoding for encoding in (*_SIMPLE, Encoding("sparse", _sparse_encode, _sparse_decode))}


def encode(array: Array) -> tuple[str, bytes]:
    """Return the name and the bytes of the shortest encoding of an array of numbers, any shape."""
    encoding, data = _shortest(np.ascontiguousarray(array).ravel(), tuple(ENCODINGS.values()))
    return encoding.name, data


def _shortest(flat: Array, options: tuple[Encoding, ...]) -> tuple[Encoding, bytes]:
    found = [(option, data) for option in options if (data := option.encode(flat)) is not None]
    return min(found, key=lambda pair: len(pair[1]))  # of equals the first


def decode(name: object, reader: Reader, spec: Spec) -> Array:
    """The inverse of `encode`: the array of that shape and dtype from the next bytes of ``reader``.

    Raises:
        ArtifactError: an unknown encoding, or bytes that it never writes. The caller has bounded the size.
    """
    if not isinstance(name, str) or name not in ENCODINGS:
        raise ArtifactError(f"a packed array has the unknown encoding {name!r}")
    return ENCODINGS[name].decode(reader, spec.size, np.dtype(spec.dtype)).reshape([int(dim) for dim in spec.shape])
