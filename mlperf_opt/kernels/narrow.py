"""Stores and moves of numbers narrower than float32, as a cache holds them; the loads of `simd.py` widen them."""

from __future__ import annotations

from typing import Any

from numba import types

from mlperf_opt.kernels.emit import F16, I8, I16, I32, I64, instruction, lanes_of, load, store
from mlperf_opt.kernels.simd import f32x16

_ADDRESS = types.int64


@instruction(types.int64, _ADDRESS)
def load_byte(b: Any, address: Any) -> Any:
    """A byte, whatever it stands for."""
    return b.zext(load(b, address, I8), I64)


@instruction(types.none, _ADDRESS, types.int64)
def store_byte(b: Any, address: Any, value: Any) -> None:
    """The lowest byte of an int64."""
    store(b, address, b.trunc(value, I8))


@instruction(types.int64, _ADDRESS)
def load_int16(b: Any, address: Any) -> Any:
    """Two bytes, whatever they stand for."""
    return b.zext(load(b, address, I16), I64)


@instruction(types.none, _ADDRESS, types.int64)
def store_int16(b: Any, address: Any, value: Any) -> None:
    """The lowest two bytes of an int64."""
    store(b, address, b.trunc(value, I16))


@instruction(types.none, _ADDRESS, f32x16)
def store_halves(b: Any, address: Any, value: Any) -> None:
    """16 float32 as float16, to the nearest; of a CPU with the instruction for it."""
    store(b, address, b.fptrunc(value, lanes_of(F16)))


@instruction(types.none, _ADDRESS, f32x16)
def store_signed_codes(b: Any, address: Any, value: Any) -> None:
    """16 whole numbers in -127..127 as int8."""
    store(b, address, b.trunc(b.fptosi(value, lanes_of(I32)), lanes_of(I8)))
