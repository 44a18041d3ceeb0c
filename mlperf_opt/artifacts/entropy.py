"""Small integers through a range coder, with a probability table of a few bytes.

A tensor of quantized weights has 36 to some thousand codes: an ordinary table of 255 probabilities would cost more than it
saves. The model here is

    P(0) = z,   P(+m) = P(-m) = (1 - z) q(m) / 2,   m = low..high

where q has a peak at ``high`` (a scale per channel makes every channel touch the end of its range) and below it one of two
shapes: a curve of two parameters, or a histogram. Pruning leaves many zeros and a hole below ``low``.

Everything that decides a probability is integer arithmetic on bytes of the payload, so that every machine decodes the same.
The range coder is constriction's (Bamler, arXiv:2201.01741); docs/format.md gives it and the model exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from constriction import stream as coding  # type: ignore[attr-defined]  # compiled, without stubs
from numpy.typing import NDArray

from mlperf_opt.artifacts.payload import Reader, varint
from mlperf_opt.errors import ArtifactError

Array = NDArray[Any]

MAX_MAGNITUDE = 255
_TOTAL = 1 << 20  # probabilities are integers that add up to this
_CODER_TOTAL = 1 << 24  # constriction's own resolution
_WORD_BYTES = 4
_CURVE = 0  # number of bins that says: a curve, no histogram
_COARSE = np.arange(0, 256, 10)  # values of the two parameters of a curve, tried first
_BIN_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 255)


def _smooth(byte: int | Array) -> Any:
    """byte / 255 = t -> 3 t^2 - 2 t^3 in units of 1 / _TOTAL: a probability that is finely resolved near 0 and near 1."""
    return (3 * 255 * byte**2 - 2 * byte**3) * _TOTAL // 255**3


@dataclass(frozen=True)
class Model:
    """The distribution of one array of integers in -high..high (``is_signed``) or 0..high.

    Attributes:
        is_signed: whether the array's dtype has negative values.
        zero: byte; `_smooth` of it is P(0).
        low, high: smallest and largest magnitude that is not 0; 1 <= low <= high <= 255.
        peak: byte; `_smooth` of it is P(high | not 0).
        shape: two bytes (slope, bend) of the curve, or a histogram's bytes.
        bins: number of bins of the histogram, `_CURVE` for a curve.
    """

    is_signed: bool
    zero: int
    low: int
    high: int
    peak: int
    bins: int
    shape: bytes

    def to_bytes(self) -> bytes:
        """Return the parameters as they stand in the file."""
        return bytes([self.zero, self.low, self.high, self.peak, self.bins]) + self.shape

    @classmethod
    def read(cls, reader: Reader, is_signed: bool) -> Model:
        """Read the parameters. Raises `ArtifactError` for a table that no writer makes."""
        zero, low, high, peak, bins = reader.take(5)
        model = cls(is_signed, zero, low, high, peak, bins, reader.take(bins or 2))
        if not 1 <= low <= high or (bins and not any(model.shape)):
            raise ArtifactError("a packed array has an impossible probability table")
        return model

    @property
    def offset(self) -> int:
        """What is added to a code to make it a symbol 0, 1, 2, ..."""
        return self.high if self.is_signed else 0

    @cached_property
    def frequencies(self) -> Array:
        """Probability of every symbol in units of 1 / _TOTAL, int64; they add up to _TOTAL exactly."""
        zero = _smooth(self.zero)
        peak = (_TOTAL - zero) * _smooth(self.peak) // _TOTAL
        magnitudes = np.zeros(self.high + 1, np.int64)
        weights = _curve(self.shape, self.high - self.low) if self.bins == _CURVE else self._histogram()
        if weights.size:
            magnitudes[self.low : self.high] = (_TOTAL - zero - peak) * weights // weights.sum()
        magnitudes[self.high] += peak
        if self.is_signed:
            magnitudes = np.concatenate([magnitudes[::-1] // 2, magnitudes[1:] // 2])
        magnitudes[self.offset] = zero
        magnitudes[np.argmax(magnitudes)] += _TOTAL - magnitudes.sum()  # what rounding has lost
        return magnitudes

    def _histogram(self) -> Array:
        """Weights of the magnitudes low..high-1: their bin's byte, squared, so that small counts are resolved too."""
        width = self.high - self.low
        return np.frombuffer(self.shape, np.uint8)[np.arange(width) * self.bins // max(width, 1)].astype(np.int64) ** 2

    def bits(self, counts: Array) -> float:
        """Return the length of a message with these counts per symbol, this table included."""
        n = counts.size
        probability = (self.frequencies * (_CODER_TOTAL - n) / _TOTAL + 1) / _CODER_TOTAL
        return 8 * len(self.to_bytes()) - float(counts @ np.log2(probability))

    def coder(self) -> coding.model.Categorical:
        """Return constriction's model. float64 holds our probabilities exactly, so it can't round them its own way."""
        return coding.model.Categorical(self.frequencies / _TOTAL, lazy=False, perfect=False)


def _curve(shape: bytes | Array, width: int) -> Array:
    """Weights w of ``width`` successive magnitudes, (width,) or (width, M) for M shapes at once; int64.

    ``w' = w (65536 - r) / 65536, r' = r + bend^2 / 4``, from r = +-(slope - 96)^2: log w is a parabola, so a bell, half
    a bell (bend > 0) and a geometric decay (bend = 0) are all here; r < 0 rises. The clips keep int64 from overflowing.
    """
    slope, bend = np.asarray(list(shape), np.int64)
    rate = (slope - 96) * np.abs(slope - 96)
    weight = np.full(np.shape(slope), 1 << 32, np.int64)
    weights = np.empty((width, *np.shape(slope)), np.int64)
    for place in range(width):
        weights[place] = weight
        weight = np.minimum(weight * (65536 - rate) >> 16, 1 << 40)
        rate = np.minimum(rate + (bend**2 >> 2), 65536)
    return weights


# choosing the table


def fit(codes: Array) -> Model | None:
    """Return the model that codes ``codes`` (1-d integers) in the fewest bits; None where no model can."""
    # the range in Python's integers: the magnitude of the smallest int64 is no int64
    if not codes.size or not 1 <= max(-int(codes.min()), int(codes.max())) <= MAX_MAGNITUDE:
        return None
    magnitudes = np.abs(codes.astype(np.int64))
    counts = np.bincount(magnitudes)
    low, high = int(np.flatnonzero(counts[1:])[0]) + 1, counts.size - 1
    zeros, tops = int(counts[0]), int(counts[high])
    others = codes.size - zeros - tops
    zero = _best_byte(zeros, codes.size - zeros)
    base = Model(codes.dtype.kind == "i", zero, low, high, _best_byte(tops, others), _CURVE, bytes(2))
    symbol_counts = np.bincount(codes.astype(np.int64) + base.offset, minlength=high + base.offset + 1)
    return min(_candidates(base, counts[low:high]), key=lambda model: model.bits(symbol_counts))


def _best_byte(hits: int, misses: int) -> int:
    """The byte whose `_smooth` codes so many hits and misses in the fewest bits."""
    probability = np.clip(_smooth(np.arange(256)) / _TOTAL, 2**-24, 1 - 2**-24)
    return int(np.argmax(hits * np.log2(probability) + misses * np.log2(1 - probability)))


def _candidates(base: Model, counts: Array) -> Iterator[Model]:
    """Yield the curve that fits best and a histogram of every size, for these counts of the magnitudes low..high-1."""
    width = counts.size
    best = _best_curve(counts, _grid(_COARSE, _COARSE), _coarse_curves()[:width])
    fine = _grid(*(np.arange(max(v - 9, 0), min(v + 9, 255) + 1) for v in best))  # every value around the best
    slope, bend = _best_curve(counts, fine, _curve(fine, width))
    yield replace(base, shape=bytes([slope, bend]))
    for bins in (*(b for b in _BIN_COUNTS if b < width), width):
        if not counts.any():
            return
        index = np.arange(width) * bins // width
        means = np.bincount(index, counts, bins) / np.bincount(index, minlength=bins)
        # a bin with a few counts among many must not become 0, which would make them very long
        shape = np.where(means > 0, np.maximum(np.rint(255 * np.sqrt(means / means.max())), 1), 0)
        yield replace(base, bins=bins, shape=shape.astype(np.uint8).tobytes())


def _grid(slopes: Array, bends: Array) -> Array:
    """Return every pair as a shape, (2, M)."""
    return np.stack([grid.ravel() for grid in np.meshgrid(slopes, bends)])


@cache
def _coarse_curves() -> Array:
    """Return the curves of the coarse grid at their longest; their first weights are those of any shorter one."""
    return _curve(_grid(_COARSE, _COARSE), MAX_MAGNITUDE)


def _best_curve(counts: Array, shapes: Array, curves: Array) -> tuple[int, int]:
    """Return the one of the shapes (2, M) whose curve, of ``curves`` (W, M), codes ``counts`` (W,) in the fewest bits."""
    weights = curves.astype(np.float64) + 1
    best = int(np.argmax(counts @ np.log2(weights / weights.sum(axis=0))))
    return int(shapes[0, best]), int(shapes[1, best])


# the bytes


def encode(codes: Array) -> bytes | None:
    """Return ``codes`` (1-d integers) as model, length and range-coded bytes; None where they can't be coded so."""
    model = fit(codes)
    if model is None:
        return None
    symbols = codes.astype(np.int32) + np.int32(model.offset)
    coder = coding.queue.RangeEncoder()
    coder.encode(symbols, model.coder())
    stream = _shorten(coder.get_compressed().astype(">u4").tobytes(), symbols, model)
    return model.to_bytes() + varint(len(stream)) + stream


def decode(reader: Reader, count: int, dtype: np.dtype[Any]) -> Array:
    """The inverse of `encode`: (count,) of ``dtype``. Raises `ArtifactError` for bytes that no writer makes."""
    model = Model.read(reader, dtype.kind == "i")
    if model.high > np.iinfo(dtype).max + (dtype.kind == "i"):
        raise ArtifactError(f"a packed array holds codes up to {model.high}, too large for {dtype}")
    symbols = _symbols(reader.take(reader.varint()), count, model)
    codes = symbols - model.offset
    if codes.size and codes.max() > np.iinfo(dtype).max:
        raise ArtifactError(f"a packed array holds a code too large for {dtype}")
    return codes.astype(dtype)


def _symbols(stream: bytes, count: int, model: Model) -> Array:
    """Decode ``count`` symbols; the stream goes on with zeros for ever."""
    padded = stream + bytes(-len(stream) % _WORD_BYTES + 2 * _WORD_BYTES)
    try:
        return coding.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32)).decode(model.coder(), count)
    except AssertionError:  # constriction's word for it
        raise ArtifactError("a packed array does not decode with its own probability table") from None


def _shorten(stream: bytes, symbols: Array, model: Model) -> bytes:
    """Cut the end of the stream: the coder rounds it up to whole words, though any number in its last interval would do.

    Every length is tried with the prefix itself and with the next larger number, and the shortest that decodes is taken.
    """
    for length in range(max(len(stream) - 2 * _WORD_BYTES, 0), len(stream)):
        prefix = int.from_bytes(stream[:length])
        for number in (prefix, prefix + 1):
            if number < 256**length:
                short = number.to_bytes(length)
                if _decodes_to(short, symbols, model):
                    return short
    return stream


def _decodes_to(stream: bytes, symbols: Array, model: Model) -> bool:
    try:
        return bool((_symbols(stream, symbols.size, model) == symbols).all())
    except ArtifactError:
        return False
