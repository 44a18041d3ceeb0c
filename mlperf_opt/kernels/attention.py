"""Attention over several heads on whole sequences, its parts, and rotary; `kv_cache.py` goes one step after the other.

Both attend in the same way: the keys of a head lie transposed, [width][places], so that one vector holds the scores of 16
places and no sum runs across lanes; the values lie [places][width]. The parts exist for each kind of number that a cache
holds: it is widened to float32 as it is loaded.
"""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.kernels.elementwise import softmax_row
from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.instruction import POSITIONS, TIME, field, operand
from mlperf_opt.kernels.jit import kernel, operation
from mlperf_opt.kernels.opcodes import DONE
from mlperf_opt.kernels.simd import (
    add,
    floats,
    load_codes,
    load_double,
    load_float,
    load_floats,
    load_halves,
    load_int,
    multiply,
    multiply_add,
    partners,
    store_float,
    store_floats,
    store_int,
    store_some_floats,
)

_NONE = np.float32(0)


def _parts(load, size):
    """(scores of one query, mix of values) for numbers of ``size`` bytes, 16 of which ``load`` reads as float32."""

    @kernel()
    def score(query, keys, places, last, width, scores):
        """Write query k^T for the first ``last`` places, in whole vectors; ``places`` is the length of a row of keys.

        Eight rows of keys at once, from one end to the other: memory is read in the order in which it lies.
        """
        i = 0
        while i + 8 <= width:
            row, at = keys + size * i * places, query + 4 * i
            a, b = floats(load_float(at)), floats(load_float(at + 4))
            c, d = floats(load_float(at + 8)), floats(load_float(at + 12))
            e, f = floats(load_float(at + 16)), floats(load_float(at + 20))
            g, h = floats(load_float(at + 24)), floats(load_float(at + 28))
            step = size * places
            for p in range(0, last, LANES):
                here = row + size * p
                total = load_floats(scores + 4 * p) if i else floats(_NONE)
                total = multiply_add(a, load(here), total)
                other = multiply(b, load(here + step))
                total = multiply_add(c, load(here + 2 * step), total)
                other = multiply_add(d, load(here + 3 * step), other)
                total = multiply_add(e, load(here + 4 * step), total)
                other = multiply_add(f, load(here + 5 * step), other)
                total = multiply_add(g, load(here + 6 * step), total)
                other = multiply_add(h, load(here + 7 * step), other)
                store_floats(scores + 4 * p, add(total, other))
            i += 8
        while i < width:
            a, row = floats(load_float(query + 4 * i)), keys + size * i * places
            for p in range(0, last, LANES):
                total = load_floats(scores + 4 * p) if i else floats(_NONE)
                store_floats(scores + 4 * p, multiply_add(a, load(row + size * p), total))
            i += 1

    @kernel()
    def mix(shares, values, step, used, width, out):
        """Write the sum of the values of ``used`` places, ``step`` bytes apart, each times its share."""
        i = 0
        while i + 2 * LANES <= width:
            column = values + size * i
            a, b, c, d = floats(_NONE), floats(_NONE), floats(_NONE), floats(_NONE)
            p = 0
            while p + 2 <= used:
                here = column + p * step
                share, next_share = floats(load_float(shares + 4 * p)), floats(load_float(shares + 4 * p + 4))
                a = multiply_add(share, load(here), a)
                b = multiply_add(share, load(here + size * LANES), b)
                c = multiply_add(next_share, load(here + step), c)
                d = multiply_add(next_share, load(here + step + size * LANES), d)
                p += 2
            if p < used:
                share = floats(load_float(shares + 4 * p))
                a = multiply_add(share, load(column + p * step), a)
                b = multiply_add(share, load(column + p * step + size * LANES), b)
            store_floats(out + 4 * i, add(a, c))
            store_floats(out + 4 * (i + LANES), add(b, d))
            i += 2 * LANES
        while i < width:
            column = values + size * i
            a, b, c, d = floats(_NONE), floats(_NONE), floats(_NONE), floats(_NONE)
            p = 0
            while p + 4 <= used:
                here = column + p * step
                a = multiply_add(floats(load_float(shares + 4 * p)), load(here), a)
                b = multiply_add(floats(load_float(shares + 4 * p + 4)), load(here + step), b)
                c = multiply_add(floats(load_float(shares + 4 * p + 8)), load(here + 2 * step), c)
                d = multiply_add(floats(load_float(shares + 4 * p + 12)), load(here + 3 * step), d)
                p += 4
            while p < used:
                a = multiply_add(floats(load_float(shares + 4 * p)), load(column + p * step), a)
                p += 1
            store_some_floats(out + 4 * i, width - i, add(add(a, b), add(c, d)))
            i += LANES

    return score, mix


score_floats, mix_floats = _parts(load_floats, 4)
score_halves, mix_halves = _parts(load_halves, 2)
score_codes, mix_codes = _parts(load_codes, 1)


@kernel()
def whole_vectors(count):
    """``count`` floats, filled up to whole vectors: how long rows of keys (places) and of cached values (width) are."""
    return (count + LANES - 1) // LANES * LANES


@kernel()
def scale_query(query, width, out):
    """Write query / sqrt(width)."""
    scale = floats(np.float32(1 / math.sqrt(width)))
    for i in range(0, width, LANES):
        store_floats(out + 4 * i, multiply(load_floats(query + 4 * i), scale))


# fields, behind the opcode; steps in bytes; SHARED: heads of queries for each head of keys and values
QUERY, KEYS, VALUES, OUT, QUERY_STEP, KEYS_STEP, VALUES_STEP, OUT_STEP, HEADS, HEAD_WIDTH, CAUSAL, SCRATCH, SHARED = range(
    1, 14
)


@operation()
def attention(instruction, memories, rows):
    """Whole sequences."""
    time = field(memories, TIME)
    heads, width = field(instruction, HEADS), field(instruction, HEAD_WIDTH)
    q_step, k_step, v_step = (
        field(instruction, QUERY_STEP),
        field(instruction, KEYS_STEP),
        field(instruction, VALUES_STEP),
    )
    out_step, shared = field(instruction, OUT_STEP), field(instruction, SHARED)
    places = whole_vectors(time)
    scaled = operand(instruction, SCRATCH, memories)
    transposed = scaled + 4 * whole_vectors(width)
    scores = transposed + 4 * width * places
    for sequence in range(rows // time):
        first = sequence * time
        for head in range(heads):
            shift, of_keys = 4 * head * width, 4 * (head // shared) * width
            if head % shared == 0:
                keys = operand(instruction, KEYS, memories) + first * k_step + of_keys
                for i in range(width):
                    for t in range(time):
                        store_float(transposed + 4 * (i * places + t), load_float(keys + t * k_step + 4 * i))
            query = operand(instruction, QUERY, memories) + first * q_step + shift
            values = operand(instruction, VALUES, memories) + first * v_step + of_keys
            out = operand(instruction, OUT, memories) + first * out_step + shift
            for t in range(time):
                used = t + 1 if field(instruction, CAUSAL) else time
                scale_query(query + t * q_step, width, scaled)
                score_floats(scaled, transposed, places, used, width, scores)
                softmax_row(scores, scores, used)
                mix_floats(scores, values, v_step, used, width, out + t * out_step)
    return DONE


# rotary: COSINES and SINES are tables of PERIOD floats for each of PLACES; TURNS is a place behind them, and its two rows
X, TURNED, X_STEP, TURNED_STEP, COUNT, COSINES, SINES, PERIOD, PLACES, OFFSETS, FREQUENCIES, REACH, TURNS = range(1, 14)


@operation()
def rotary(instruction, memories, rows):
    """x cosines + (x with the two of each pair exchanged) sines; places behind the tables are computed."""
    x, out = operand(instruction, X, memories), operand(instruction, TURNED, memories)
    period, places, reach = field(instruction, PERIOD), field(instruction, PLACES), field(instruction, REACH)
    time, offsets = field(memories, TIME), field(memories, POSITIONS)
    for sequence in range(rows // time):
        first = 0
        if field(instruction, OFFSETS):
            first = load_int(offsets + 8 * sequence)
        for t in range(time):
            place = first + t
            if reach > 0:
                place = min(place, reach)
            cosines = operand(instruction, COSINES, memories) + 4 * place * period
            sines = operand(instruction, SINES, memories) + 4 * place * period
            if place >= places:
                turns = operand(instruction, TURNS, memories)  # shared by all nodes: the first of a step computes for them
                cosines = turns + 8 * LANES
                sines = cosines + 4 * period
                if load_int(turns) != place:
                    _turns(place, operand(instruction, FREQUENCIES, memories), period, cosines, sines)
                    store_int(turns, place)
            for i in range(0, field(instruction, COUNT), LANES):
                value, lane = load_floats(x + 4 * i), 4 * (i % period)
                across = multiply(partners(value), load_floats(sines + lane))
                store_floats(out + 4 * i, multiply_add(value, load_floats(cosines + lane), across))
            x += field(instruction, X_STEP)
            out += field(instruction, TURNED_STEP)
    return DONE


@kernel()
def _turns(place, frequencies, period, cosines, sines):
    """Write the rows of the tables for one place. The angles are float64: far places keep their last bits too."""
    for lane in range(0, period, 2):
        angle = place * load_double(frequencies + 8 * lane)
        cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        store_float(cosines + 4 * lane, cosine)
        store_float(cosines + 4 * lane + 4, cosine)
        store_float(sines + 4 * lane, -sine)
        store_float(sines + 4 * lane + 4, sine)
