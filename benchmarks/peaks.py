"""What the CPU can do at best: multiply-adds on registers alone, and bytes read or copied.

Each loop has 16 independent sums (AMX: 4 tiles of them), enough to hide an instruction's latency, and touches no memory
inside. A kernel that reads its operands from somewhere can't be faster: a share of these is a share of what is possible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from mlperf_opt.kernels import amx
from mlperf_opt.kernels.emit import F32, I8, I32, I64, LANES, at, call, constant, instruction, lanes_of, load, number, store
from mlperf_opt.kernels.jit import features, kernel

_SUMS = 16
_STEPS = 4000  # of a call: some microseconds, so that the call itself doesn't count
_TILE_MACS = 16 * 16 * 64
_LINE = 64


@dataclass(frozen=True)
class Peak:
    """A loop, and what one call of it does.

    Attributes:
        name: the instruction.
        call: runs it.
        macs: multiply-adds of a call.
    """

    name: str
    call: Callable[[], None]
    macs: int


def _loop(vector: Any, first: float, step: Callable[[ir.IRBuilder, Any], Any]) -> Any:
    """A function (steps, where to leave the sums) that does ``sum = step(sum)`` on 16 registers."""

    @instruction(types.none, types.int64, types.int64)
    def registers_only(b: Any, steps: Any, out: Any) -> None:
        sums = [cgutils.alloca_once(b, vector) for _ in range(_SUMS)]  # LLVM keeps them in registers
        for slot in sums:
            b.store(constant(vector, first), slot)
        with cgutils.for_range(b, steps, intp=I64):
            for slot in sums:
                b.store(step(b, b.load(slot)), slot)
        for i, slot in enumerate(sums):  # else LLVM sees that nobody wants them
            store(b, b.add(out, number(_LINE * i)), b.load(slot))

    return registers_only


def _multiply_add(b: ir.IRBuilder, total: Any) -> Any:
    return call(b, "llvm.fma.v16f32", total.type, total, constant(total.type, 0.5), constant(total.type, 0.25))


def _dot_int8(b: ir.IRBuilder, total: Any) -> Any:
    codes = lanes_of(I8, 64)
    x, weight = constant(codes, 3), constant(codes, 5)
    return call(b, "llvm.x86.avx512.vpdpbusd.512", total.type, total, x, weight)


@instruction(types.none, types.int64, types.int64)
def _tiles(b: Any, steps: Any, config: Any) -> None:
    """Four products of tiles a step: 2 x 2 tiles of sums, as in our kernels. What the tiles hold doesn't matter."""

    def tile(name: str, *numbers: int) -> None:
        call(b, f"llvm.x86.{name}", ir.VoidType(), *(ir.Constant(I8, n) for n in numbers))

    call(b, "llvm.x86.ldtilecfg", ir.VoidType(), at(b, config, I8))
    for n in range(8):
        tile("tilezero", n)
    with cgutils.for_range(b, steps, intp=I64):
        for n in range(4):
            tile("tdpbusd", n, 4 + n // 2, 6 + n % 2)
    call(b, "llvm.x86.tilerelease", ir.VoidType())


@instruction(types.none, types.int64, types.int64, types.int64)
def _read(b: Any, start: Any, lines: Any, out: Any) -> None:
    """Load ``lines`` cache lines, 8 a step, into 8 sums."""
    vector = lanes_of(I32)
    sums = [cgutils.alloca_once(b, vector) for _ in range(8)]
    for slot in sums:
        b.store(constant(vector, 0), slot)
    with cgutils.for_range(b, b.udiv(lines, number(8)), intp=I64) as step:
        here = b.add(start, b.mul(step.index, number(8 * _LINE)))
        for i, slot in enumerate(sums):
            value = load(b, b.add(here, number(_LINE * i)), vector)
            b.store(b.xor(b.load(slot), value), slot)
    for i, slot in enumerate(sums):
        store(b, b.add(out, number(_LINE * i)), b.load(slot))


def _on_registers(name: str, body: Any, macs: int, where: int) -> Peak:
    @kernel()
    def run(steps, address):  # noqa: ANN001, ANN202 - numba infers the types of kernels
        body(steps, address)

    return Peak(name, lambda: run(_STEPS, where), macs * _STEPS)


def arithmetic_peaks() -> dict[str, Peak]:
    """Return the loops that this CPU has: fma (always), vpdpbusd and tdpbusd."""
    sums, config = np.zeros(_SUMS * _LINE, np.uint8), amx.configuration(amx.ROWS)
    _KEPT.extend([sums, config])
    where = sums.ctypes.data
    peaks = {"fma": _on_registers("fma", _loop(lanes_of(F32), 1.0, _multiply_add), _SUMS * LANES, where)}
    if "avx512vnni" in features():
        body = _loop(lanes_of(I32), 1, _dot_int8)
        peaks["vpdpbusd"] = _on_registers("vpdpbusd", body, _SUMS * 4 * LANES, where)
    if amx.available():
        peaks["tdpbusd"] = _on_registers("tdpbusd", _tiles, 4 * _TILE_MACS, config.ctypes.data)
    return peaks


_KEPT: list[NDArray[Any]] = []  # loops hold addresses of these


def buffer(size: int) -> NDArray[np.uint8]:
    """Return ``size`` bytes at the start of a cache line, all of them written: pages that nobody wrote are one page."""
    raw = np.ones(size + _LINE, np.uint8)
    return raw[-raw.ctypes.data % _LINE :][:size]


def read_call(size: int, at_least: int = 1 << 20) -> tuple[Callable[[], None], int]:
    """Return a call that reads a buffer of ``size`` bytes over and over, and the bytes that it reads."""
    data, out, times = buffer(size), buffer(8 * _LINE), max(1, at_least // size)
    start, lines, where = data.ctypes.data, size // _LINE, out.ctypes.data

    def run(_kept: Any = (data, out)) -> None:
        _read_often(start, lines, times, where)

    return run, size // (8 * _LINE) * (8 * _LINE) * times


def copy_call(size: int) -> tuple[Callable[[], None], int]:
    """Return a call that copies ``size`` bytes with the C library's memcpy, and the bytes read and written."""
    source, target = buffer(size), buffer(size)
    return lambda: np.copyto(target, source), 2 * size


@kernel()
def _read_often(start, lines, times, out):  # noqa: ANN001, ANN202
    for _ in range(times):
        _read(start, lines, out)
