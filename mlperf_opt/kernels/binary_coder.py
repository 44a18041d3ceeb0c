"""A binary arithmetic coder whose probabilities are mixed from opinions that learn: the parts, in integers only.

Compiled by numba where it is installed; without it the same functions run as they stand, on lists. The state is a tuple of
flat arrays, since that is what both worlds index alike: inputs, weights, touched, cells, seen, squash, stretch, registers,
stream, and whatever the caller adds. A kernel that uses these parts gives ``decoding`` = 0 to write a bit, 1 to read it.

Sources: Martin, "Range encoding" (1979), in the carry-less form of Subbotin; opinions mixed in the logistic domain by online
gradient descent: Mahoney's PAQ and lpaq1 (2005, 2007); Mattern, arXiv:1302.2490.
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    from mlperf_opt.kernels.jit import kernel

    IS_COMPILED = True
except ImportError:  # no numba

    def kernel(*signatures: str) -> Any:
        return lambda function: function

    IS_COMPILED = False

ONE = 1 << 16  # a probability of 1
STRETCH_LIMIT = 3071  # stretch(p) = 256 ln(p / (1 - p)) lies in -limit..limit
TAIL_BYTES = 4  # a reader is so many bytes ahead
_MASK = (1 << 32) - 1
_SEEN_LIMIT = 255  # after so many bits a cell forgets at a constant rate


@kernel()
def code_bit(bit: int, probability: int, state: Any, decoding: int) -> int:
    """Write ``bit``, or read it: a carry-less binary range coder of 32 bits; ``probability`` is that of a 1."""
    registers, stream = state[7], state[8]
    low, high = registers[0], registers[1]
    middle = low + ((high - low) * probability >> 16)
    if decoding:
        bit = 1 if registers[2] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) >> 24 == 0:
        place = registers[3]
        if decoding:
            byte = stream[place] if place < len(stream) else 0
            registers[2] = (registers[2] << 8 & _MASK) | byte
        elif place < len(stream):
            stream[place] = high >> 24
        registers[3] = place + 1
        low = low << 8 & _MASK
        high = (high << 8 & _MASK) | 255
    registers[0], registers[1] = low, high
    return bit


@kernel()
def look(place: int, cell: int, base: int, state: Any) -> int:
    """Make a cell's opinion input ``place`` of the next decision; a cell never used has the opinion ``base``."""
    inputs, touched, cells, seen, stretch = state[0], state[2], state[3], state[4], state[6]
    if seen[cell] == 0:
        cells[cell] = base << 6
    touched[place] = cell
    probability = cells[cell] >> 6
    inputs[place] = stretch[probability]
    return probability


@kernel()
def decide(bit: int, looked: int, count: int, first: int, rate: int, state: Any, decoding: int) -> int:
    """Code a bit by the mix of ``count`` inputs, of which the first ``looked`` are cells; then all of them learn from it."""
    inputs, weights, touched, cells, seen, squash = state[0], state[1], state[2], state[3], state[4], state[5]
    total = 0
    for i in range(count):
        total += weights[first + i] * inputs[i]
    total = min(max(total >> 16, -STRETCH_LIMIT), STRETCH_LIMIT)
    probability = squash[total + STRETCH_LIMIT]
    bit = code_bit(bit, probability, state, decoding)
    error = ((bit << 16) - probability) * rate
    for i in range(count):
        weights[first + i] += (inputs[i] * error + (1 << 17)) >> 18
    for i in range(looked):
        cell = touched[i]
        cells[cell] += ((bit << 22) - cells[cell]) * (ONE // (seen[cell] + 2)) >> 16
        seen[cell] = min(seen[cell] + 1, _SEEN_LIMIT)
    return bit


def tables() -> tuple[Any, Any]:
    """Return squash (a sum of stretched probabilities, plus `STRETCH_LIMIT` -> probability) and stretch, its inverse.

    No entry is so close to a half that float64 could round it the other way (a test looks at each): all machines have these.
    """
    x = np.arange(-STRETCH_LIMIT, STRETCH_LIMIT + 1)
    squash = np.clip(np.rint(ONE / (1 + np.exp(-x / 256))), 16, ONE - 16).astype(np.int64)
    p = np.arange(ONE) + 0.5
    return squash, np.rint(256 * np.log(p / (ONE - p))).astype(np.int64)
