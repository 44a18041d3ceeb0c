"""Attention on a KV cache, one step after the other, and what puts new keys and values into it.

A cache holds float32, float16, or int8 codes, keys (and scales of values, as keys of width 1) in panels of 16 places,
[width][16 places], values by place. Places and rings are those of `ops/kv_cache.py`.
"""

from __future__ import annotations

import numpy as np

from mlperf_opt.kernels.blocks import whole_vectors
from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.exponential import softmax_row
from mlperf_opt.kernels.instruction import LENGTHS, POSITIONS, SEQUENCE, TIME, field, operand
from mlperf_opt.kernels.jit import kernel, operation
from mlperf_opt.kernels.lanes import transpose
from mlperf_opt.kernels.narrow import load_byte, load_int16, store_byte, store_halves, store_int16, store_signed_codes
from mlperf_opt.kernels.one_query import (
    mix_codes,
    mix_floats,
    mix_halves,
    scale_query,
    score_codes,
    score_floats,
    score_halves,
)
from mlperf_opt.kernels.opcodes import DONE, PROMPT_ATTENTION
from mlperf_opt.kernels.simd import (
    divide,
    floats,
    larger,
    largest_of,
    load_float,
    load_floats,
    load_int,
    load_some_floats,
    magnitude,
    multiply,
    nearest,
    smaller,
    store_float,
    store_floats,
)

FLOAT, HALF, CODES = range(3)  # what a cache holds
_PROMPT_FROM = 6  # new places: with fewer, packing what a sequence holds costs more than it saves
_HALF_LIMIT = np.float32(65504)
_CODE_LIMIT = np.float32(127)
_NONE, _ONE, _INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
_TINY = np.finfo(np.float32).tiny

# fields of all, behind the opcode. CAPACITY, the places of the state filled up to whole vectors, and PLACES, those that a
# row uses before it comes round behind the SINKS, are filled in when a session starts.
CAPACITY, PLACES, HEADS, HEAD_WIDTH, KIND, SINKS, WINDOW, SCRATCH = range(1, 9)
# head_scale
X, OUT, X_STEP, OUT_STEP = range(9, 13)
# cache_write: SCALES is 0 for none, 1 for one a channel, 2 for one a vector
CACHE, NEW, NEW_STEP, PANELS, SCALES, SCALE, SCALE_STEP = range(9, 16)
NO_SCALE, BY_CHANNEL, BY_VECTOR = range(3)
# cached_attention
QUERY, QUERY_STEP, KEYS, VALUES, ATTENDED, ATTENDED_STEP, SHARED, KEY_SCALE, VALUE_SCALES, FAR, FAR_STEP = range(9, 20)


@operation()
def head_scale(instruction, memories, rows):
    """The largest magnitude of each head over 127; 1 where all is zero."""
    x, out = operand(instruction, X, memories), operand(instruction, OUT, memories)
    width = field(instruction, HEAD_WIDTH)
    for _ in range(rows):
        for head in range(field(instruction, HEADS)):
            top = floats(_NONE)
            for i in range(0, width, LANES):
                top = larger(magnitude(load_some_floats(x + 4 * (head * width + i), width - i, _NONE)), top)
            peak = largest_of(top)
            store_float(out + 4 * head, max(peak / _CODE_LIMIT, _TINY) if peak > _NONE else _ONE)
        x += field(instruction, X_STEP)
        out += field(instruction, OUT_STEP)
    return DONE


@kernel()
def _store(kind, x, grid, out):
    """Write 16 floats as the cache holds them."""
    if kind == CODES:
        x = nearest(divide(x, grid))
        store_signed_codes(out, smaller(larger(x, floats(-_CODE_LIMIT)), floats(_CODE_LIMIT)))
    elif kind == HALF:
        store_halves(out, smaller(larger(x, floats(-_HALF_LIMIT)), floats(_HALF_LIMIT)))
    else:
        store_floats(out, x)


@kernel()
def _convert(kind, new, width, scales, scale, out):
    """Write one vector, and what fills up the last 16 numbers, as the cache holds it."""
    grid = floats(_ONE)
    if scales == BY_VECTOR:
        grid = floats(load_float(scale))
    for i in range(0, width, LANES):
        if scales == BY_CHANNEL:
            grid = load_floats(scale + 4 * i)
        _store(kind, load_floats(new + 4 * i), grid, out + (4 >> kind) * i)


@kernel()
def _convert_panel(kind, new, new_step, width, scales, scale, scratch, out):
    """Write 16 vectors as a panel."""
    grid = floats(_ONE)
    for i in range(0, width, LANES):
        transpose(new + 4 * i, new_step, LANES - 1, width - i, scratch, 64)
        for j in range(i, min(i + LANES, width)):
            if scales == BY_CHANNEL:
                grid = floats(load_float(scale + 4 * j))
            _store(kind, load_floats(scratch + 64 * (j - i)), grid, out + (4 >> kind) * LANES * j)


@kernel()
def _put_column(kind, source, width, out):
    """Copy ``width`` numbers into a column of a panel."""
    if kind == CODES:
        for i in range(width):
            store_byte(out + LANES * i, load_byte(source + i))
    elif kind == HALF:
        for i in range(width):
            store_int16(out + 2 * LANES * i, load_int16(source + 2 * i))
    else:
        for i in range(width):
            store_float(out + 4 * LANES * i, load_float(source + 4 * i))


@operation()
def cache_write(instruction, memories, rows):
    """Put each sequence's first ``lengths`` new vectors behind the places it holds."""
    heads, width, kind = field(instruction, HEADS), field(instruction, HEAD_WIDTH), field(instruction, KIND)
    capacity, places, sinks = field(instruction, CAPACITY), field(instruction, PLACES), field(instruction, SINKS)
    wide, size, scales = whole_vectors(width), 4 >> kind, field(instruction, SCALES)
    cache, scratch = operand(instruction, CACHE, memories), operand(instruction, SCRATCH, memories)
    panels, step, scale = field(instruction, PANELS), field(instruction, NEW_STEP), scratch
    time, lengths, offsets = field(memories, TIME), field(memories, LENGTHS), field(memories, POSITIONS)
    for sequence in range(rows // time):
        start = load_int(offsets + 8 * sequence)
        t, count = 0, load_int(lengths + 8 * sequence)
        while t < count:
            row, place = sequence * time + t, start + t
            if place >= places:
                place = sinks + (place - sinks) % (places - sinks)
            lane = place % LANES
            at_once = LANES if panels and lane == 0 and t + LANES <= count and place + LANES <= places else 1
            for head in range(heads):
                new = operand(instruction, NEW, memories) + row * step + 4 * head * width
                if scales == BY_CHANNEL:
                    scale = operand(instruction, SCALE, memories) + 4 * head * width
                elif scales == BY_VECTOR:
                    scale = operand(instruction, SCALE, memories) + row * field(instruction, SCALE_STEP) + 4 * head
                of_head = (field(memories, SEQUENCE) + sequence) * heads + head
                column = cache + size * (width * (of_head * capacity + place - lane) + lane)
                if not panels:
                    _convert(kind, new, width, scales, scale, cache + size * (of_head * capacity + place) * wide)
                elif at_once > 1:
                    _convert_panel(kind, new, step, width, scales, scale, scratch, column)
                else:
                    _convert(kind, new, width, scales, scale, scratch)
                    _put_column(kind, scratch, width, column)
            t += at_once
    return DONE


@kernel()
def _score(kind, query, keys, last, width, scores):
    if kind == CODES:
        score_codes(query, keys, last, width, scores)
    elif kind == HALF:
        score_halves(query, keys, last, width, scores)
    else:
        score_floats(query, keys, last, width, scores)


@kernel()
def _multiply(x, other, count):
    for i in range(0, count, LANES):
        store_floats(x + 4 * i, multiply(load_floats(x + 4 * i), load_floats(other + 4 * i)))


@operation(leaves_to=PROMPT_ATTENTION)
def cached_attention(instruction, memories, rows):
    """New place t of a sequence sees the places that it holds and the new ones up to t, of a window the last ones."""
    if field(memories, TIME) >= _PROMPT_FROM:
        return PROMPT_ATTENTION
    heads, width, kind = field(instruction, HEADS), field(instruction, HEAD_WIDTH), field(instruction, KIND)
    capacity, places, shared = field(instruction, CAPACITY), field(instruction, PLACES), field(instruction, SHARED)
    sinks, window, size = field(instruction, SINKS), field(instruction, WINDOW), 4 >> kind
    wide = whole_vectors(width)
    scaled = operand(instruction, SCRATCH, memories)
    far_scores = scaled + 4 * wide
    scores = far_scores + 4 * whole_vectors(sinks)
    is_far = field(instruction, FAR_STEP) > 0
    time, offsets = field(memories, TIME), field(memories, POSITIONS)
    for sequence in range(rows // time):
        start = load_int(offsets + 8 * sequence)
        for head in range(heads):
            of_head = ((field(memories, SEQUENCE) + sequence) * heads + head) // shared
            keys = operand(instruction, KEYS, memories) + size * of_head * width * capacity
            values = operand(instruction, VALUES, memories) + size * of_head * capacity * wide
            for t in range(time):
                row, own = sequence * time + t, start + t
                used = min(own + 1, places)
                key_scale = operand(instruction, KEY_SCALE, memories) + 4 * (head // shared) * width
                if is_far:
                    far = operand(instruction, FAR, memories) + row * field(instruction, FAR_STEP) + 4 * head * width
                    scale_query(far, width, scaled)
                    if kind == CODES:
                        _multiply(scaled, key_scale, width)
                    _score(kind, scaled, keys, min(sinks, used), width, far_scores)
                query = operand(instruction, QUERY, memories) + row * field(instruction, QUERY_STEP) + 4 * head * width
                scale_query(query, width, scaled)
                if kind == CODES:
                    _multiply(scaled, key_scale, width)
                _score(kind, scaled, keys, used, width, scores)
                if is_far:
                    for p in range(min(sinks, used)):
                        store_float(scores + 4 * p, load_float(far_scores + 4 * p))
                if window > 0 and own < places:
                    for p in range(sinks, own - window + 1):
                        store_float(scores + 4 * p, -_INFINITY)
                softmax_row(scores, scores, used)
                if kind == CODES:
                    _multiply(scores, operand(instruction, VALUE_SCALES, memories) + 4 * of_head * capacity, used)
                out = operand(instruction, ATTENDED, memories) + row * field(instruction, ATTENDED_STEP) + 4 * head * width
                if kind == CODES:
                    mix_codes(scores, values, wide, used, width, out)
                elif kind == HALF:
                    mix_halves(scores, values, 2 * wide, used, width, out)
                else:
                    mix_floats(scores, values, 4 * wide, used, width, out)
    return DONE
