"""Attention over several heads: whole sequences, and one step after the other on a cache.

Both attend in the same way: the keys of a head lie transposed, [width][places], so that one vector holds the scores of 16
places and no sum runs across lanes; the values lie [places][width].
"""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.kernels.elementwise import softmax_row
from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.instruction import field, operand
from mlperf_opt.kernels.jit import kernel
from mlperf_opt.kernels.simd import (
    add,
    floats,
    load_float,
    load_floats,
    load_int,
    multiply,
    multiply_add,
    partners,
    store_float,
    store_floats,
    store_int,
    store_some_floats,
)

# fields, behind the opcode; steps in bytes
QUERY, KEYS, VALUES, OUT, QUERY_STEP, KEYS_STEP, VALUES_STEP, OUT_STEP, HEADS, HEAD_WIDTH, CAUSAL, SCRATCH = range(1, 13)
CAPACITY = 13  # cached: places of the state, whole vectors of them
SHARED = 14  # heads of queries for each head of keys and values
CACHE, NEW, NEW_STEP, IS_KEYS = 1, 2, 3, 4  # cache_write (HEADS, HEAD_WIDTH and CAPACITY as above)
_NONE = np.float32(0)


@kernel()
def _attend(query, keys, places, values, values_step, used, width, scores, out):
    """softmax(q k^T / sqrt(width)) v over the first ``used`` places; ``places`` is the length of a row of keys."""
    scale = np.float32(1 / math.sqrt(width))
    p = 0
    while p < used:
        if p + 4 * LANES <= places:  # four vectors together: one would wait for its own last multiply-add
            a, b, c, d = floats(_NONE), floats(_NONE), floats(_NONE), floats(_NONE)
            for i in range(width):
                q, row = floats(load_float(query + 4 * i) * scale), keys + 4 * (i * places + p)
                a = multiply_add(q, load_floats(row), a)
                b = multiply_add(q, load_floats(row + 4 * LANES), b)
                c = multiply_add(q, load_floats(row + 8 * LANES), c)
                d = multiply_add(q, load_floats(row + 12 * LANES), d)
            store_floats(scores + 4 * p, a)
            store_floats(scores + 4 * (p + LANES), b)
            store_floats(scores + 4 * (p + 2 * LANES), c)
            store_floats(scores + 4 * (p + 3 * LANES), d)
            p += 4 * LANES
        else:
            a = floats(_NONE)
            for i in range(width):
                a = multiply_add(floats(load_float(query + 4 * i) * scale), load_floats(keys + 4 * (i * places + p)), a)
            store_floats(scores + 4 * p, a)
            p += LANES
    softmax_row(scores, scores, used)
    for i in range(0, width, LANES):
        column = values + 4 * i
        a, b, c, d = floats(_NONE), floats(_NONE), floats(_NONE), floats(_NONE)
        p = 0
        while p + 4 <= used:
            here = column + p * values_step
            a = multiply_add(floats(load_float(scores + 4 * p)), load_floats(here), a)
            b = multiply_add(floats(load_float(scores + 4 * p + 4)), load_floats(here + values_step), b)
            c = multiply_add(floats(load_float(scores + 4 * p + 8)), load_floats(here + 2 * values_step), c)
            d = multiply_add(floats(load_float(scores + 4 * p + 12)), load_floats(here + 3 * values_step), d)
            p += 4
        while p < used:
            a = multiply_add(floats(load_float(scores + 4 * p)), load_floats(column + p * values_step), a)
            p += 1
        store_some_floats(out + 4 * i, width - i, add(add(a, b), add(c, d)))


@kernel()
def whole_vectors(count):
    """``count`` floats, filled up to whole vectors: how long rows of keys (places) and of cached values (width) are."""
    return (count + LANES - 1) // LANES * LANES


@kernel()
def attention(instruction, memories, sequences, time):
    """Whole sequences of ``time`` places each."""
    heads, width = field(instruction, HEADS), field(instruction, HEAD_WIDTH)
    q_step, k_step, v_step = (
        field(instruction, QUERY_STEP),
        field(instruction, KEYS_STEP),
        field(instruction, VALUES_STEP),
    )
    out_step, shared = field(instruction, OUT_STEP), field(instruction, SHARED)
    places = whole_vectors(time)
    transposed = operand(instruction, SCRATCH, memories)
    scores = transposed + 4 * width * places
    for sequence in range(sequences):
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
                _attend(query + t * q_step, transposed, places, values, v_step, used, width, scores, out + t * out_step)


@kernel()
def cache_write(instruction, memories, lengths, offsets, sequence_of_state, sequences, time):
    """Put each sequence's first ``lengths`` new vectors behind the places it holds: keys transposed, values as they are."""
    heads, width = field(instruction, HEADS), field(instruction, HEAD_WIDTH)
    capacity, wide = field(instruction, CAPACITY), whole_vectors(width)
    for sequence in range(sequences):
        cache = operand(instruction, CACHE, memories)
        new = operand(instruction, NEW, memories) + sequence * time * field(instruction, NEW_STEP)
        start = load_int(offsets + 8 * sequence)
        for t in range(load_int(lengths + 8 * sequence)):
            for head in range(heads):
                source = new + t * field(instruction, NEW_STEP) + 4 * head * width
                of_head = (sequence_of_state + sequence) * heads + head
                if field(instruction, IS_KEYS):
                    column = cache + 4 * (of_head * width * capacity + start + t)
                    for i in range(width):
                        store_float(column + 4 * i * capacity, load_float(source + 4 * i))
                else:
                    row = cache + 4 * (of_head * capacity + start + t) * wide
                    for i in range(width):
                        store_float(row + 4 * i, load_float(source + 4 * i))


@kernel()
def cached_attention(instruction, memories, offsets, sequence_of_state, sequences, time):
    """New place t of a sequence sees the places that it holds and the new ones up to t."""
    heads, width = field(instruction, HEADS), field(instruction, HEAD_WIDTH)
    capacity, wide = field(instruction, CAPACITY), whole_vectors(width)
    scores, shared = operand(instruction, SCRATCH, memories), field(instruction, SHARED)
    for sequence in range(sequences):
        start = load_int(offsets + 8 * sequence)
        for head in range(heads):
            of_head = ((sequence_of_state + sequence) * heads + head) // shared
            keys = operand(instruction, KEYS, memories) + 4 * of_head * width * capacity
            values = operand(instruction, VALUES, memories) + 4 * of_head * capacity * wide
            for t in range(time):
                row = sequence * time + t
                query = operand(instruction, QUERY, memories) + row * field(instruction, QUERY_STEP) + 4 * head * width
                out = operand(instruction, OUT, memories) + row * field(instruction, OUT_STEP) + 4 * head * width
                used = min(start + t + 1, capacity)
                _attend(query, keys, capacity, values, 4 * wide, used, width, scores, out)


@kernel()
def advance(lengths, offsets, out, sequences):
    """Each sequence holds ``lengths`` places more."""
    for sequence in range(sequences):
        store_int(out + 8 * sequence, load_int(offsets + 8 * sequence) + load_int(lengths + 8 * sequence))


# rotary: tables of cosines and sines, PERIOD floats a place
X, TURNED, X_STEP, TURNED_STEP, COUNT, COSINES, SINES, PERIOD, PLACES, OFFSETS = range(1, 11)


@kernel()
def rotary(instruction, memories, offsets, sequences, time):
    """x cosines + (x with the two of each pair exchanged) sines; a place behind the last takes the last (padding)."""
    x, out = operand(instruction, X, memories), operand(instruction, TURNED, memories)
    cosines, sines = operand(instruction, COSINES, memories), operand(instruction, SINES, memories)
    period, last = field(instruction, PERIOD), field(instruction, PLACES) - 1
    for sequence in range(sequences):
        first = 0
        if field(instruction, OFFSETS):
            first = load_int(offsets + 8 * sequence)
        for t in range(time):
            row = min(first + t, last) * period
            for i in range(0, field(instruction, COUNT), LANES):
                value, place = load_floats(x + 4 * i), 4 * (row + i % period)
                across = multiply(partners(value), load_floats(sines + place))
                store_floats(out + 4 * i, multiply_add(value, load_floats(cosines + place), across))
            x += field(instruction, X_STEP)
            out += field(instruction, TURNED_STEP)
