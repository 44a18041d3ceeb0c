"""How kernels read their operands: an instruction is a row of int64, a reference is a place in one of a few memories.

A reference holds the number of a memory in its upper bits and an offset in the lower ones. The addresses of the memories are
looked up when the instruction runs, so that one program serves any input, output, chunk of a batch and thread.
"""

from __future__ import annotations

from mlperf_opt.kernels.jit import kernel
from mlperf_opt.kernels.simd import load_int

WIDTH = 32  # int64 of one instruction
# memories: activations; constants (weights, scales); the call's input and output; a session's state
ARENA, CONSTANTS, INPUT, OUTPUT, LENGTHS, POSITIONS, FIRST_STATE = range(7)
MEMORIES = 64
_SHIFT = 48
_OFFSET = (1 << _SHIFT) - 1


def reference(memory: int, offset: int = 0) -> int:
    """Return the reference to a byte of a memory."""
    return memory << _SHIFT | offset


@kernel()
def field(instruction, number):
    """The instruction's int64 with that number."""
    return load_int(instruction + 8 * number)


@kernel()
def operand(instruction, number, memories):
    """The address that the reference with that number stands for now."""
    place = load_int(instruction + 8 * number)
    return load_int(memories + 8 * (place >> _SHIFT)) + (place & _OFFSET)
