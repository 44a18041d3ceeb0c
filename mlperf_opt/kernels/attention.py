"""Attention over several heads on whole sequences, and rotary; `kv_cache.py` and `prompt.py` attend on a cache."""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.kernels.blocks import ROWS, attend, packed_keys, packed_values, whole_vectors
from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.instruction import POSITIONS, TIME, field, operand
from mlperf_opt.kernels.jit import kernel, operation
from mlperf_opt.kernels.lanes import transpose
from mlperf_opt.kernels.opcodes import DONE
from mlperf_opt.kernels.simd import (
    load_double,
    load_floats,
    load_int,
    load_some_floats,
    multiply,
    multiply_add,
    partners,
    store_float,
    store_floats,
    store_int,
)

_NONE = np.float32(0)


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
    causal, scratch = field(instruction, CAUSAL), operand(instruction, SCRATCH, memories)
    for sequence in range(rows // time):
        first = sequence * time
        for head in range(heads):
            shift, of_keys = 4 * head * width, 4 * (head // shared) * width
            if head % shared == 0:
                keys = operand(instruction, KEYS, memories) + first * k_step + of_keys
                values = operand(instruction, VALUES, memories) + first * v_step + of_keys
                _pack(keys, k_step, values, v_step, time, width, scratch)
            query = operand(instruction, QUERY, memories) + first * q_step + shift
            out = operand(instruction, OUT, memories) + first * out_step + shift
            for t in range(0, time, ROWS):
                attend(
                    scratch, packed_keys(scratch), time, width, min(ROWS, time - t), query + t * q_step, q_step, 0, 0,
                    t if causal else time - 1, causal, time, 0, 0, out + t * out_step, out_step,
                )  # fmt: skip
    return DONE


@kernel()
def _pack(keys, keys_step, values, values_step, places, width, scratch):
    """Put the keys and values of one head, rows of floats, where `attend` looks for them."""
    packed = packed_keys(scratch)
    for p in range(0, places, LANES):
        for i in range(0, width, LANES):  # upwards: what is written behind the last line of a panel is the next one's
            transpose(
                keys + p * keys_step + 4 * i, keys_step, places - 1 - p, width - i, packed + 4 * width * p + 64 * i, 64
            )
    packed = packed_values(scratch, places, width)
    for i in range(0, width, LANES):
        for p in range(places):
            store_floats(packed + 64 * p, load_some_floats(values + p * values_step + 4 * i, width - i, _NONE))
        packed += 64 * whole_vectors(places)


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
