"""How kernels read their operands: an instruction is a row of int64, a reference is a place in one of a few memories.

A reference holds the number of a memory in its upper bits and an offset in the lower ones. The addresses of the memories are
looked up when the instruction runs, so that one program serves any input, output, chunk of a batch and thread.
"""

from __future__ import annotations

from typing import Any

from numba import types

from mlperf_opt.kernels.emit import I64, instruction, load, number

WIDTH = 32  # int64 of one instruction
# memories: activations; constants (weights, scales); the call's input and output; the new places of each sequence and those
# that it holds, int64; a session's state. SEQUENCE and TIME are no addresses, but numbers of the call, looked up alike:
# where its first sequence is in the state, and how many rows a sequence has.
ARENA, CONSTANTS, INPUT, OUTPUT, LENGTHS, POSITIONS, SEQUENCE, TIME, FIRST_STATE = range(9)
_SHIFT = 48
_OFFSET = (1 << _SHIFT) - 1


def reference(memory: int, offset: int = 0) -> int:
    """Return the reference to a byte of a memory."""
    return memory << _SHIFT | offset


@instruction(types.int64, types.int64, types.int64)
def field(b: Any, start: Any, place: Any) -> Any:
    """The int64 with that number of the instruction that starts at an address."""
    return load(b, b.add(start, b.mul(place, number(8))), I64)


@instruction(types.int64, types.int64, types.int64, types.int64)
def operand(b: Any, start: Any, place: Any, memories: Any) -> Any:
    """The address that the reference with that number stands for now."""
    found = load(b, b.add(start, b.mul(place, number(8))), I64)
    memory = load(b, b.add(memories, b.mul(b.ashr(found, number(_SHIFT)), number(8))), I64)
    return b.add(memory, b.and_(found, number(_OFFSET)))
