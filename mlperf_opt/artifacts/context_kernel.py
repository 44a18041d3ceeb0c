"""The loops of the context coder, one function for both directions, in integers only; docs/format.md gives them in words.

Compiled by numba where it is installed; without it the same functions run as they stand, on lists. `context` is the only
importer, and imports this file only when a file has, or may get, an array in this encoding.

The state of the coder is a tuple of flat arrays (`State` names them), since that is what both worlds index alike.
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

STRETCH_LIMIT = 3071  # stretch(p) = 256 ln(p / (1 - p)) lies in -limit..limit
ONE = 1 << 16  # a probability of 1
_MASK = (1 << 32) - 1
_SEEN_LIMIT = 255  # after so many bits a cell forgets at a constant rate
_PRIOR = 16  # places' worth of trust in the density at large against a row's or column's own
ESCAPE = 16  # magnitudes up to here are unary
_MAX_EXPONENT = 32

# the cells: where each kind of context begins
_COLUMN_PLAIN, _COLUMN, _ROW = 0, 8, 72
_PATTERN, _NEARNESS = 80, 144
_SIGN_NEAR, _SIGN_FAR, _SIGN_LAST = 160, 169, 196
_SIZE, _SIZE_CELLS, _EXPONENT = 200, 48, 1000
CELLS = _EXPONENT + _MAX_EXPONENT + 1

# the places around a place: to the left, a row of the image or filter up, a channel before, and twice as far
LEFT, UP, BEHIND, LEFT2, UP_LEFT, UP_RIGHT, LEFT3, UP2, BEHIND2 = range(9)
_CROWD = 6  # the first of them are the crowd

# the mixers: where the weights of each kind of decision begin
_W_COLUMN, _W_ROW, _W_ZERO, _W_SIGN, _W_SIZE, _W_EXPONENT = 0, 3, 4, 10, 13, 17
# how far each input is believed before anything is known, in units of 1 / ONE: found on pruned LeNets
FIRST_WEIGHTS = (
    *(14000, 36000, -3000),
    65536,
    *(7000, 9000, 22000, 6000, 9000, -10000),
    *(36000, 15000, 15000),
    *(5000, 23000, 18000, 10000),
    65536,
)


@kernel()
def _code_bit(bit: int, probability: int, state: Any, decoding: int) -> int:
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
def _look(place: int, cell: int, base: int, state: Any) -> int:
    """Make a cell's opinion input ``place`` of the next decision; a cell never used has the opinion ``base``."""
    inputs, touched, cells, seen, stretch = state[0], state[2], state[3], state[4], state[6]
    if seen[cell] == 0:
        cells[cell] = base << 6
    touched[place] = cell
    probability = cells[cell] >> 6
    inputs[place] = stretch[probability]
    return probability


@kernel()
def _decide(bit: int, looked: int, count: int, first: int, rate: int, state: Any, decoding: int) -> int:
    """Code a bit by the mix of ``count`` inputs, of which the first ``looked`` are cells; then all of them learn from it."""
    inputs, weights, touched, cells, seen, squash = state[0], state[1], state[2], state[3], state[4], state[5]
    total = 0
    for i in range(count):
        total += weights[first + i] * inputs[i]
    total = min(max(total >> 16, -STRETCH_LIMIT), STRETCH_LIMIT)
    probability = squash[total + STRETCH_LIMIT]
    bit = _code_bit(bit, probability, state, decoding)
    error = ((bit << 16) - probability) * rate
    for i in range(count):
        weights[first + i] += (inputs[i] * error + (1 << 17)) >> 18
    for i in range(looked):
        cell = touched[i]
        cells[cell] += ((bit << 22) - cells[cell]) * (ONE // (seen[cell] + 2)) >> 16
        seen[cell] = min(seen[cell] + 1, _SEEN_LIMIT)
    return bit


@kernel()
def _density(hits: int, places: int, prior: int) -> int:
    """The share of hits among places, drawn towards ``prior``, as a probability below 1."""
    return min((hits * ONE + _PRIOR * prior) // (places + _PRIOR), ONE - 1)


@kernel()
def _side(value: int) -> int:
    return 0 if value == 0 else (1 if value > 0 else 2)


@kernel()
def _code_liveness(
    columns: int, near: int, far: int, rate: int, profile: Any, span: int, live: Any, state: Any, decoding: int
) -> None:
    """Code which columns hold anything, from those before and from what the profile says of their unit."""
    total = 0
    for unit in range(len(profile)):
        total += profile[unit]
    for c in range(columns):
        left = live[c - 1] if c > 0 else 0
        left2 = live[c - 2] if c > 1 else 0
        above = live[c - near] if 0 < near <= c else 0
        right = live[c - near + 1] if 0 < near <= c else 0
        behind = live[c - far] if 0 < far <= c else 0
        if len(profile) > 0:
            hits = profile[c // span]
            above = (1 if hits > 0 else 0) + (2 if 2 * hits * len(profile) > total else 0)
        plain = _look(0, _COLUMN_PLAIN + left + 2 * above, ONE // 2, state)
        _look(1, _COLUMN + left + 2 * left2 + 4 * behind + 8 * right + 16 * above, plain, state)
        state[0][2] = 256
        live[c] = _decide(live[c], 2, 3, _W_COLUMN, rate, state, decoding)


@kernel()
def _code_magnitude(size: int, near: int, last: int, group: int, rate: int, state: Any, decoding: int) -> int:
    """Code a magnitude of at least 1: unary up to `ESCAPE`, above it an exponential Golomb code."""
    k = 1
    while k < ESCAPE:
        first = _SIZE + (k - 1) * _SIZE_CELLS
        plain = _look(0, first, ONE // 2, state)
        _look(1, first + 1 + min(near, 4), plain, state)
        _look(2, first + 6 + min(last, 5), plain, state)
        _look(3, first + 12 + group, plain, state)
        if _decide(1 if size > k else 0, 4, 4, _W_SIZE, rate, state, decoding) == 0:
            return k
        k += 1
    return ESCAPE + _code_golomb(size - ESCAPE, rate, state, decoding)


@kernel()
def _code_golomb(value: int, rate: int, state: Any, decoding: int) -> int:
    """Code a number >= 0: how many bits value + 1 has, then those below its highest. -1 if it has too many."""
    exponent = 0
    while exponent < _MAX_EXPONENT:
        _look(0, _EXPONENT + exponent, ONE // 2, state)
        if _decide(1 if value + 1 >> exponent + 1 > 0 else 0, 1, 1, _W_EXPONENT, rate, state, decoding) == 0:
            break
        exponent += 1
    found = 1
    for i in range(exponent):
        found = 2 * found + _code_bit(value + 1 >> exponent - 1 - i & 1, ONE // 2, state, decoding)
    return found - 1


@kernel()
def _look_around(values: Any, o: int, c: int, near: int, far: int, around: Any) -> None:
    """Read the places around place ``o`` of column ``c`` that are known already, 0 outside the row."""
    around[LEFT] = values[o - 1] if c > 0 else 0
    around[LEFT2] = values[o - 2] if c > 1 else 0
    around[LEFT3] = values[o - 3] if c > 2 else 0
    around[UP] = values[o - near] if 0 < near <= c else 0
    around[UP_LEFT] = values[o - near - 1] if 0 < near < c else 0
    around[UP_RIGHT] = values[o - near + 1] if 1 < near <= c else 0
    around[UP2] = values[o - 2 * near] if 0 < near <= c - near else 0
    around[BEHIND] = values[o - far] if 0 < far <= c else 0
    around[BEHIND2] = values[o - 2 * far] if 0 < far <= c - far else 0


@kernel()
def _beside(c: int, columns: int, near: int, far: int, done: int, density: int, column_hits: Any) -> int:
    """The density of the columns beside ``c``."""
    hits = places = 0
    for step in (1, near, far):
        if 0 < step <= c:
            hits += column_hits[c - step]
            places += done
        if step > 0 and c + step < columns:
            hits += column_hits[c + step]
            places += done
    return _density(hits, places, density)


@kernel()
def _code_zero(
    bit: int, before: int, of_column: int, of_row: int, beside: int, density: int, rate: int, state: Any, decoding: int
) -> int:
    """Code whether a place holds anything."""
    inputs, squash, stretch, around = state[0], state[5], state[6], state[9]
    left, up, behind = around[LEFT] != 0, around[UP] != 0, around[BEHIND] != 0
    up_left, up_right = around[UP_LEFT] != 0, around[UP_RIGHT] != 0
    # a cell that was never used takes rows and columns for independent
    base = stretch[of_column] + stretch[of_row] - stretch[density]
    base = squash[min(max(base, -STRETCH_LIMIT), STRETCH_LIMIT) + STRETCH_LIMIT]
    pattern = left + 2 * up + 4 * (before != 0) + 8 * up_right + 16 * behind + 32 * up_left
    second = up_left + up_right + (around[LEFT2] != 0) + (around[UP2] != 0) + (around[BEHIND2] != 0)
    nearness = 3 * (left + up + behind) + 2 * second + (around[LEFT3] != 0)
    _look(0, _PATTERN + pattern, base, state)
    _look(1, _NEARNESS + min(nearness, 15), base, state)
    inputs[2] = stretch[of_column]
    inputs[3] = stretch[of_row]
    inputs[4] = stretch[beside]
    inputs[5] = 256
    return _decide(bit, 2, 6, _W_ZERO, rate, state, decoding)


@kernel()
def _code_sign(bit: int, last: int, rate: int, state: Any, decoding: int) -> int:
    """Code whether a value is negative; ``last`` is the side of the row's value before it."""
    around = state[9]
    far = _side(around[BEHIND]) + 3 * _side(around[UP_RIGHT]) + 9 * _side(around[UP_LEFT])
    _look(0, _SIGN_NEAR + _side(around[LEFT]) + 3 * _side(around[UP]), ONE // 2, state)
    _look(1, _SIGN_FAR + far, ONE // 2, state)
    _look(2, _SIGN_LAST + last, ONE // 2, state)
    return _decide(bit, 3, 3, _W_SIGN, rate, state, decoding)


@kernel()
def _code_rows(
    values: Any,
    rows: int,
    columns: int,
    near: int,
    far: int,
    rate: int,
    has_sign: int,
    profile: Any,
    span: int,
    column_live: Any,
    row_live: Any,
    column_hits: Any,
    state: Any,
    decoding: int,
) -> None:
    """Code the places of live rows and columns, row by row."""
    around, units = state[9], len(profile)
    total = 0
    for unit in range(units):
        total += profile[unit]
    hits = places = done = 0
    above = -1  # the last row that was coded
    for r in range(rows):
        if row_live[r] == 0:
            continue
        row_hits = row_places = last_size = last_side = 0
        for c in range(columns):
            if column_live[c] == 0:
                continue
            o = r * columns + c
            value = values[o]
            _look_around(values, o, c, near, far, around)
            before = values[above * columns + c] if above >= 0 else 0
            density = min(max((hits * ONE + 2048) // (places + 1), 32), 65000)
            prior = density
            if units > 0:  # as many as the unit has, smoothed by half a hit
                prior = density * (2 * profile[c // span] + 1) * units // (2 * total + units)
                prior = min(max(prior, 32), 65000)
            of_column, of_row = _density(column_hits[c], done, prior), _density(row_hits, row_places, density)
            beside = _beside(c, columns, near, far, done, density, column_hits)
            bit = _code_zero(1 if value != 0 else 0, before, of_column, of_row, beside, density, rate, state, decoding)
            places += 1
            row_places += 1
            if bit == 0:
                continue
            negative = 0
            if has_sign:
                negative = _code_sign(1 if value < 0 else 0, last_side, rate, state, decoding)
            crowd = 0
            for i in range(_CROWD):
                crowd += 1 if around[i] != 0 else 0
            group = 5 * min(crowd, 4) + min(8 * column_hits[c] // (done + 1), 4)
            nearest = max(abs(around[LEFT]), abs(around[UP]))
            size = _code_magnitude(abs(value), nearest, last_size, group, rate, state, decoding)
            values[o] = -size if negative else size
            hits += 1
            row_hits += 1
            column_hits[c] += 1
            last_size, last_side = size, 1 + negative
        done += 1
        above = r


@kernel(
    "void(int64[::1], int64, int64, int64, int64, int64, int64, int64[::1], int64, int64, int64,"
    "int64[::1], int64[::1], int64[::1],"
    "int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1],"
    "uint8[::1], int64[::1], int64)"
)
def code_array(
    values: Any,
    rows: int,
    columns: int,
    near: int,
    far: int,
    rate: int,
    has_sign: int,
    profile: Any,
    span: int,
    dead_columns: int,
    dead_rows: int,
    column_live: Any,
    row_live: Any,
    column_hits: Any,
    inputs: Any,
    weights: Any,
    touched: Any,
    cells: Any,
    seen: Any,
    squash: Any,
    stretch: Any,
    registers: Any,
    stream: Any,
    around: Any,
    decoding: int,
) -> None:
    """Write ``values`` to the stream, or read them from it (``decoding``; they are 0 before).

    Args:
        values: rows x columns, flat.
        near, far: distances in a row at which a place has further neighbours, 0 for none: the width of an image or a
            filter, and the size of a filter.
        rate: how fast the mixers learn.
        has_sign: whether a value can be negative.
        profile: a number of hits for each unit that the columns come from, ``span`` columns a unit; empty if unknown.
        dead_columns, dead_rows: whether it is said first which columns and rows hold anything.
        column_live, row_live: 1 for each, if not; when writing, which are live.
        column_hits: zeros.
        inputs .. around: the state.
    """
    state = (inputs, weights, touched, cells, seen, squash, stretch, registers, stream, around)
    if dead_columns:
        _code_liveness(columns, near, far, rate, profile, span, column_live, state, decoding)
    if dead_rows:
        for r in range(rows):
            _look(0, _ROW + (row_live[r - 1] if r > 0 else 1), 60000, state)
            row_live[r] = _decide(row_live[r], 1, 1, _W_ROW, rate, state, decoding)
    _code_rows(
        values, rows, columns, near, far, rate, has_sign, profile, span, column_live, row_live, column_hits, state, decoding
    )


@kernel("int64(int64, int64, int64[::1], uint8[::1], int64)")
def code_number(value: int, width: int, registers: Any, stream: Any, decoding: int) -> int:
    """Write the number in ``width`` bits, highest first, or read it."""
    unused = registers
    state = (unused, unused, unused, unused, unused, unused, unused, registers, stream)
    found = 0
    for i in range(width):
        found = 2 * found + _code_bit(value >> width - 1 - i & 1, ONE // 2, state, decoding)
    return found


def tables() -> tuple[Any, Any]:
    """Return squash (a sum of stretched probabilities, plus `STRETCH_LIMIT` -> probability) and stretch, its inverse.

    No entry is so close to a half that float64 could round it the other way (a test looks at each): all machines have these.
    """
    x = np.arange(-STRETCH_LIMIT, STRETCH_LIMIT + 1)
    squash = np.clip(np.rint(ONE / (1 + np.exp(-x / 256))), 16, ONE - 16).astype(np.int64)
    p = np.arange(ONE) + 0.5
    return squash, np.rint(256 * np.log(p / (ONE - p))).astype(np.int64)
