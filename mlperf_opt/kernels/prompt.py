"""Attention on a KV cache for many new places at once: what a head holds is widened and packed once, then read in blocks."""

from __future__ import annotations

import numpy as np

from mlperf_opt.kernels.blocks import ROWS, attend, packed_keys, packed_values, whole_vectors
from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.instruction import LENGTHS, POSITIONS, SEQUENCE, TIME, field, operand
from mlperf_opt.kernels.jit import kernel, operation
from mlperf_opt.kernels.kv_cache import (
    ATTENDED,
    ATTENDED_STEP,
    CAPACITY,
    CODES,
    FAR,
    FAR_STEP,
    FLOAT,
    HALF,
    HEAD_WIDTH,
    HEADS,
    KEY_SCALE,
    KEYS,
    KIND,
    PLACES,
    QUERY,
    QUERY_STEP,
    SCRATCH,
    SHARED,
    SINKS,
    VALUE_SCALES,
    VALUES,
    WINDOW,
)
from mlperf_opt.kernels.opcodes import DONE
from mlperf_opt.kernels.simd import (
    floats,
    load_codes,
    load_float,
    load_floats,
    load_halves,
    load_int,
    multiply,
    store_floats,
)

_NONE = np.float32(0)


@operation()
def prompt_attention(instruction, memories, rows):
    """What `kv_cache.cached_attention` computes; its fields."""
    heads, width, kind = field(instruction, HEADS), field(instruction, HEAD_WIDTH), field(instruction, KIND)
    capacity, places, shared = field(instruction, CAPACITY), field(instruction, PLACES), field(instruction, SHARED)
    sinks, window, wide = field(instruction, SINKS), field(instruction, WINDOW), whole_vectors(width)
    query_step, far_step = field(instruction, QUERY_STEP), field(instruction, FAR_STEP)
    out_step, scratch = field(instruction, ATTENDED_STEP), operand(instruction, SCRATCH, memories)
    time, lengths, offsets = field(memories, TIME), field(memories, LENGTHS), field(memories, POSITIONS)
    for sequence in range(rows // time):
        start = load_int(offsets + 8 * sequence)
        held, keys = min(start + time, places), scratch
        known = min(start + load_int(lengths + 8 * sequence), held)
        for head in range(heads):
            if head % shared == 0:
                of_head = ((field(memories, SEQUENCE) + sequence) * heads + head) // shared
                here, size = of_head * capacity, 4 >> kind
                keys = operand(instruction, KEYS, memories) + size * width * here
                if kind != FLOAT:
                    scales = operand(instruction, KEY_SCALE, memories) + 4 * (head // shared) * width
                    _pack_keys(kind, keys, scales, held, width, packed_keys(scratch))
                    keys = packed_keys(scratch)
                _pack_values(
                    kind, operand(instruction, VALUES, memories) + size * wide * here, wide,
                    operand(instruction, VALUE_SCALES, memories) + 4 * here, known, held, width, scratch,
                )  # fmt: skip
            first, shift = sequence * time, 4 * head * width
            query = operand(instruction, QUERY, memories) + first * query_step + shift
            far = operand(instruction, FAR, memories) + first * far_step + shift
            out = operand(instruction, ATTENDED, memories) + first * out_step + shift
            for t in range(0, time, ROWS):
                attend(
                    scratch, keys, held, width, min(ROWS, time - t), query + t * query_step, query_step, far + t * far_step,
                    far_step, start + t, 1, places, sinks, window, out + t * out_step, out_step,
                )  # fmt: skip
    return DONE


@kernel()
def _widened(kind, address, number, scale):
    """16 numbers of a cache, from one on, as float32; codes times their scale."""
    if kind == CODES:
        return multiply(load_codes(address + number), floats(load_float(scale)))
    if kind == HALF:
        return load_halves(address + 2 * number)
    return load_floats(address + 4 * number)


@kernel()
def _pack_keys(kind, keys, scales, places, width, packed):
    for p in range(0, places, LANES):
        for i in range(width):
            number = p * width + LANES * i
            store_floats(packed + 4 * number, _widened(kind, keys, number, scales + 4 * i))


@kernel()
def _pack_values(kind, values, wide, scales, known, places, width, scratch):
    """Behind the places that hold something stands zero: what was there before may be no number, and is multiplied by 0."""
    packed = packed_values(scratch, places, width)
    for i in range(0, width, LANES):
        for p in range(known):
            store_floats(packed + 64 * p, _widened(kind, values, p * wide + i, scales + 4 * p))
        for p in range(known, places):
            store_floats(packed + 64 * p, floats(_NONE))
        packed += 64 * whole_vectors(places)
