"""How kernels read an instruction: the numbers, and that no place of one costs a function that numba compiles."""

import numba
import numpy as np
from numba.core import event

from mlperf_opt.kernels.instruction import CONSTANTS, field, operand, reference


class _Compiled(event.Listener):
    def __init__(self):
        self.names = []

    def on_start(self, event):
        self.names.append(event.data["dispatcher"].py_func.__name__)

    def on_end(self, event):
        pass


def test_fields_and_operands_are_read_inline():
    """A function for each literal place, 48 of the 98 that were compiled, took 40 MB and a sixth of the time."""

    def read(instruction, memories):
        return (
            field(instruction, 0),
            field(instruction, 3),
            operand(instruction, 1, memories),
            operand(instruction, 2, memories),
        )

    listener = _Compiled()
    row = np.array([7, reference(CONSTANTS, 40), reference(CONSTANTS + 1, 2**47), -9], np.int64)
    memories = np.array([0, 1000, 5000], np.int64)
    with event.install_listener("numba:compile", listener):
        found = numba.njit(read)(row.ctypes.data, memories.ctypes.data)
    assert found == (7, -9, 1040, 5000 + 2**47)
    assert listener.names == ["read"]
