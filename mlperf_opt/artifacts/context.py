"""All sparse integers of a file through one stream, in which every bit's probability is learned from what came before.

An array is cut into decisions (is this column dead? this place zero? negative? larger than 1, 2, ...?), and each is coded
with a probability mixed from several opinions: of the row, the column, the columns beside it, and of cells that remember how
the same decision went in the same surroundings. There is no table to store, and where the zeros lie is paid for only as far
as it is a surprise. The units of a layer are described by the matrix before it: a neuron with few inputs has few outputs.

Sources: significance, sign and unary magnitudes with adaptive contexts are CABAC's (Marpe, Schwarz, Wiegand 2003), for
weights DeepCABAC's (Wiedemann et al., arXiv:1907.11900); mixing opinions in the logistic domain by online gradient descent
is PAQ's (Mahoney 2005, lpaq1). docs/format.md gives everything exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import ArtifactError

Array = NDArray[Any]

# A decoder's time is bounded by the places it may be asked for; beyond them a file keeps its other encodings.
MAX_PLACES = 1 << 23
_RATES = (2, 5, 10, 20)  # of the mixers; the place in this tuple is stored
_MAX_MAGNITUDE = 1 << 31
_MAX_STRIDE = 255
_WIDTH = 32  # bits of a centre's code
_MASK = (1 << 32) - 1
_TAIL_BYTES = 4  # the decoder reads so many bytes ahead
_DENSE_MAGNITUDE = 15  # above it, and dense, unary magnitudes take long and other encodings are as short


@dataclass
class _Coder:
    """The arithmetic coder's place in a stream, and what is known of the matrix before."""

    registers: Array
    profile: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    places: int = 0


@dataclass(frozen=True)
class Trial:
    """An array as it would be appended to the stream.

    Attributes:
        bits: what it would take.
        written: the whole bytes.
        after: the coder behind it.
    """

    bits: float
    written: bytes
    after: _Coder


class ContextEncoder:
    """Writes arrays of integers into one stream."""

    def __init__(self) -> None:
        self._coder = _Coder(np.array([0, _MASK, 0, 0], np.int64))
        self._stream = bytearray()

    def offer(self, array: Array) -> Trial | None:
        """Return what appending ``array`` would take, None where it can't be coded so or would take long for nothing."""
        if array.dtype.kind not in "iu" or not array.size or self._coder.places + array.size > MAX_PLACES:
            return None
        if max(-int(array.min()), int(array.max())) >= _MAX_MAGNITUDE:
            return None
        codes = array.astype(np.int64)
        centre = _commonest(codes)
        values = codes - centre
        if 3 * np.count_nonzero(values) > values.size and int(np.abs(values).max()) > _DENSE_MAGNITUDE:
            return None
        trials = [self._write(values, centre, rate, _has_sign(array.dtype, centre)) for rate in range(len(_RATES))]
        return min(trials, key=lambda trial: trial.bits)  # of equals the first

    def accept(self, trial: Trial) -> None:
        """Append what `offer` returned last."""
        self._stream += trial.written
        self._coder = trial.after

    def finish(self) -> bytes:
        """Return the stream: any number in the coder's last interval ends it, so the one of the fewest bytes."""
        low, high = (int(value) for value in self._coder.registers[:2])
        length = next(length for length in range(_TAIL_BYTES + 1) if -(-low >> 32 - 8 * length) << 32 - 8 * length <= high)
        return bytes(self._stream) + (-(-low >> 32 - 8 * length)).to_bytes(length)

    def _write(self, values: Array, centre: int, rate: int, has_sign: bool) -> Trial:
        registers = self._coder.registers.copy()
        registers[3] = 0
        before = _bits(registers)
        link = _Link(registers, np.zeros(8 * values.size + 64, np.uint8), decoding=False)
        code = link.number
        if code(int(centre != 0), 1):
            code(2 * centre if centre > 0 else -2 * centre - 1, _WIDTH + 1)
        profile = self._coder.profile
        if code(int(values.any()), 1):
            code(rate, 2)
            grid = _grid(values)
            live = [np.asarray(grid.any(axis), np.int64) for axis in (0, 1)]
            flags = [code(int(not some.all()), 1) for some in live]
            link.array(grid, _strides(values.shape, profile.size), _RATES[rate], has_sign, profile, flags, live)
        end = link.registers
        written = bytes(link.stream[: int(end[3])])
        return Trial(_bits(end) - before, written, _Coder(end, _profile(values, profile), self._coder.places + values.size))


class ContextDecoder:
    """Reads them again, in the same order."""

    def __init__(self, stream: bytes) -> None:
        head = stream[:_TAIL_BYTES].ljust(_TAIL_BYTES, b"\0")
        registers = np.array([0, _MASK, int.from_bytes(head), _TAIL_BYTES], np.int64)
        self._coder = _Coder(registers)
        self._stream = np.frombuffer(stream, np.uint8).copy()

    def decode(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return the next array. Raises `ArtifactError` for bytes that no writer makes."""
        size = math.prod(shape)
        self._coder.places += size
        if dtype.kind not in "iu" or not size or self._coder.places > MAX_PLACES:
            raise ArtifactError(f"the encoding 'context' can't hold {dtype}{list(shape)} here")
        link = _Link(self._coder.registers, self._stream, decoding=True)
        code = link.number
        centre = 0
        if code(0, 1):
            coded = code(0, _WIDTH + 1)
            centre = -(coded + 1 >> 1) if coded & 1 else coded >> 1
        values = np.zeros(shape, np.int64)
        if code(0, 1):
            rate = _RATES[code(0, 2)]
            grid = _grid(values)
            flags = [code(0, 1) for _ in range(2)]
            live = [np.full(count, 1 - flag, np.int64) for count, flag in zip(grid.shape[::-1], flags, strict=True)]
            strides = _strides(shape, self._coder.profile.size)
            values = link.array(grid, strides, rate, _has_sign(dtype, centre), self._coder.profile, flags, live)
            values = values.reshape(shape)
        self._coder.registers = link.registers
        self._check_place()
        self._coder.profile = _profile(values, self._coder.profile)
        codes = values + centre
        limits = np.iinfo(dtype)
        if int(codes.min()) < limits.min or int(codes.max()) > limits.max:
            raise ArtifactError(f"a packed array holds a code too large for {dtype}")
        return codes.astype(dtype)

    def finish(self) -> None:
        """Raise `ArtifactError` if bytes are left over."""
        if self._coder.registers[3] < self._stream.size:
            raise ArtifactError("bytes are left over behind the last array in the encoding 'context'")

    def _check_place(self) -> None:
        if self._coder.registers[3] > self._stream.size + _TAIL_BYTES:
            raise ArtifactError("the arrays in the encoding 'context' end too early")


class _Link:
    """The kernels with their arrays: numpy's where they are compiled, lists where they are not."""

    def __init__(self, registers: Array, stream: Array, *, decoding: bool) -> None:
        from mlperf_opt.artifacts import context_kernel  # numba, if it is there, only now

        self._kernels = context_kernel
        self._registers = self._flat(registers)
        self._stream = stream if context_kernel.IS_COMPILED else bytearray(stream)
        self._decoding = int(decoding)

    @property
    def registers(self) -> Array:
        return np.asarray(self._registers, np.int64)

    @property
    def stream(self) -> Any:
        return self._stream

    def number(self, value: int, width: int) -> int:
        """Write or read an unsigned number."""
        return int(self._kernels.code_number(value, width, self._registers, self._stream, self._decoding))

    def array(
        self,
        grid: Array,
        strides: tuple[int, int],
        rate: int,
        has_sign: bool,
        profile: Array,
        dead: list[int],
        live: list[Array],
    ) -> Array:
        """Write or read a matrix; returned flat."""
        rows, columns = grid.shape
        if not profile.size or columns % profile.size:
            profile = np.zeros(0, np.int64)
        values = self._flat(grid.ravel())
        zeros = [np.zeros(count, np.int64) for count in (columns, 8, 4, self._kernels.CELLS, self._kernels.CELLS, 9)]
        hits, inputs, touched, cells, seen, around = (self._flat(array) for array in zeros)
        weights = self._flat(np.array(self._kernels.FIRST_WEIGHTS, np.int64))
        shape = (rows, columns, *strides, rate, int(has_sign), self._flat(profile), columns // max(profile.size, 1))
        live_columns, live_rows = (self._flat(some) for some in live)
        squash, stretch = _tables()
        state = (inputs, weights, touched, cells, seen, squash, stretch, self._registers, self._stream, around)
        self._kernels.code_array(values, *shape, *dead, live_columns, live_rows, hits, *state, self._decoding)
        return np.asarray(values, np.int64)

    def _flat(self, array: Array) -> Any:
        return np.array(array, np.int64) if self._kernels.IS_COMPILED else array.tolist()


@cache
def _tables() -> tuple[Any, Any]:
    from mlperf_opt.artifacts import context_kernel

    squash, stretch = context_kernel.tables()
    return (squash, stretch) if context_kernel.IS_COMPILED else (squash.tolist(), stretch.tolist())


def _commonest(codes: Array) -> int:
    """The code that stands for zero in the stream: 0 if no code is more frequent."""
    found, counts = np.unique(codes, return_counts=True)
    counts[found == 0] += 1  # of equals 0, which needs no bits
    return int(found[np.argmax(counts)])


def _has_sign(dtype: np.dtype[Any], centre: int) -> bool:
    return dtype.kind == "i" or centre != 0


def _grid(values: Array) -> Array:
    """A row for each unit; an array of one axis is one row."""
    return values.reshape(values.shape[0] if values.ndim > 1 else 1, -1)


def _strides(shape: tuple[int, ...], units: int) -> tuple[int, int]:
    """How far further neighbours of a place lie in its row, 0 for none.

    A filter's rows and its channels; the rows of a square image; the rows and channels of the squares that ``units`` filters
    left behind.
    """
    if len(shape) < 2:
        return 0, 0
    if len(shape) > 2:
        return _bounded(shape[-1]), _bounded(shape[-1] * shape[-2])
    columns = shape[1]
    if units and columns % units == 0:
        area = columns // units
        side = math.isqrt(area)
        return (side, _bounded(area)) if 1 < side <= _MAX_STRIDE and side * side == area else (0, 0)
    side = math.isqrt(columns)
    return (_bounded(side), 0) if side > 1 and side * side == columns else (0, 0)


def _bounded(stride: int) -> int:
    return stride if 1 < stride <= _MAX_STRIDE else 0


def _profile(values: Array, before: Array) -> Array:
    """The hits of every row of the last matrix."""
    return np.count_nonzero(_grid(values), axis=1).astype(np.int64) if values.ndim > 1 else before


def _bits(registers: Array) -> float:
    return 8 * int(registers[3]) + 32 - math.log2(int(registers[1]) - int(registers[0]) + 1)
