"""One thread's memory, and the job that the machine reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.graph import POSITION
from mlperf_opt.kernels.instruction import ARENA, CONSTANTS, FIRST_STATE
from mlperf_opt.kernels.kv_cache import CAPACITY, PLACES
from mlperf_opt.kernels.machine import (
    CHUNK,
    COUNT,
    INPUT_STEP,
    JOB_WIDTH,
    KERNEL_TABLE,
    MEMORY_TABLE,
    MOVES_ON,
    OUTPUT_STEP,
    PROGRAM,
)
from mlperf_opt.runtimes.compiled.attention_ops import padded
from mlperf_opt.runtimes.compiled.layout import LINE
from mlperf_opt.runtimes.compiled.program import Program

Array = NDArray[Any]


def aligned_bytes(size: int) -> Array:
    """Zeros, uint8, at an address that is a multiple of a cache line."""
    raw = np.zeros(size + LINE, np.uint8)
    skip = -raw.ctypes.data % LINE
    return raw[skip : skip + size]


class Worker:
    """An arena, a table of memories, and a job. Two threads have two; two sessions have two.

    Attributes:
        address: of the job that runs the whole program.
    """

    def __init__(
        self, program: Program, constants: Array, state: Mapping[str, Array] | None = None, length: int = 0
    ) -> None:
        self.arena = aligned_bytes(program.arena.size + LINE)
        for offset, size, byte in program.arena.fills:
            self.arena[offset : offset + size] = byte
        self._table = np.zeros(FIRST_STATE + len(program.graph.state), np.int64)
        self._table[ARENA], self._table[CONSTANTS] = self.arena.ctypes.data, constants.ctypes.data
        self._instructions = program.instructions.copy()
        # the job holds addresses of these, so they must stay alive
        self._alive = (constants, state, program.kernels)
        if state:
            for i, name in enumerate(s.name for s in program.graph.state):
                if name != POSITION:
                    self._table[FIRST_STATE + i] = state[name].ctypes.data
            on_state = program.on_state
            self._instructions[on_state, CAPACITY], self._instructions[on_state, PLACES] = padded(length), length
        x, out = program.values[next(iter(program.graph.inputs))], program.output
        self._job = np.zeros(JOB_WIDTH, np.int64)
        self._job[PROGRAM], self._job[COUNT] = self._instructions.ctypes.data, len(self._instructions)
        self._job[KERNEL_TABLE] = program.kernels.ctypes.data
        self._job[MEMORY_TABLE], self._job[CHUNK] = self._table.ctypes.data, program.rows
        self._job[INPUT_STEP] = math.prod(x.shape) * x.itemsize
        self._job[OUTPUT_STEP] = math.prod(out.shape) * out.itemsize
        self._job[MOVES_ON] = POSITION in (state or {})
        self.address = self._job.ctypes.data
        self._parts: list[tuple[Array, Array]] = []  # kept alive, as above

    def part(self, span: slice, repeat: int = 1) -> int:
        """Return the address of a job: a part of the program, ``repeat`` times over, that moves no position."""
        instructions = np.concatenate([self._instructions[span]] * repeat)
        job = self._job.copy()
        job[PROGRAM], job[COUNT], job[MOVES_ON] = instructions.ctypes.data, len(instructions), 0
        self._parts.append((job, instructions))
        return job.ctypes.data
