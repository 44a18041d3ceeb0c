"""Reading a byte string piece by piece, with every length checked; and the variable-length integers in it."""

from __future__ import annotations

from mlperf_opt.errors import ArtifactError

_MAX_VARINT_BYTES = 10  # 70 bits: more than any length or any int64 needs


class Reader:
    """A cursor over ``data`` that never reads past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._place = 0

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._place

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes. Raises `ArtifactError` if there are fewer."""
        if count > self.remaining:
            raise ArtifactError(f"the packed arrays end too early: {count} bytes wanted, {self.remaining} left")
        self._place += count
        return bytes(self._data[self._place - count : self._place])

    def byte(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """Return the next unsigned integer: 7 bits a byte, lowest first, the top bit set in all but the last (LEB128)."""
        value = 0
        for place in range(_MAX_VARINT_BYTES):
            byte = self.byte()
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return value
        raise ArtifactError("a packed array holds a number without an end")

    def signed(self) -> int:
        """Return the next signed integer, stored as 0, -1, 1, -2, 2, ... -> 0, 1, 2, 3, 4, ... (zigzag)."""
        value = self.varint()
        return -(value + 1 >> 1) if value & 1 else value >> 1


def varint(value: int) -> bytes:
    """Return what `Reader.varint` reads as ``value`` (>= 0)."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def signed(value: int) -> bytes:
    """Return what `Reader.signed` reads as ``value``."""
    return varint(2 * value if value >= 0 else -2 * value - 1)
