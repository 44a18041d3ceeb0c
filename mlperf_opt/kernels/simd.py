"""Vectors of 16 lanes, and loads and stores at addresses, for kernels in numba.

numba has no vector types and no unaligned loads of one type from memory of another; these are a type and a few LLVM
instructions each (`emit.py`). An address is an int64. Memory is as numpy laid it out; nothing is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from mlperf_opt.kernels.emit import (
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    call,
    constant,
    instruction,
    lanes_of,
    load,
    load_first,
    saturated_codes,
    splat,
    store,
    store_first,
    tail_mask,
    to_float,
)


class Vector(types.Type):
    """A numba type for 16 lanes of one LLVM type."""

    def __init__(self, name: str, llvm: Any) -> None:
        self.llvm = lanes_of(llvm)
        super().__init__(name)


class FloatVector(Vector):
    """16 x float32."""


class ByteVector(Vector):
    """16 x uint8."""


@register_model(FloatVector)
@register_model(ByteVector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.llvm)


f32x16 = FloatVector("f32x16", F32)
u8x16 = ByteVector("u8x16", I8)
_ADDRESS = types.int64


@instruction(types.int64, _ADDRESS)
def load_int(b: Any, address: Any) -> Any:
    """An int64."""
    return load(b, address, I64)


@instruction(types.none, _ADDRESS, types.int64)
def store_int(b: Any, address: Any, value: Any) -> None:
    """An int64."""
    store(b, address, value)


@instruction(types.float64, _ADDRESS)
def load_double(b: Any, address: Any) -> Any:
    """A float64."""
    return load(b, address, ir.DoubleType())


@instruction(types.int64, _ADDRESS)
def load_int32(b: Any, address: Any) -> Any:
    """An int32, widened."""
    return b.sext(load(b, address, I32), I64)


@instruction(types.none, _ADDRESS, types.int64)
def store_int32(b: Any, address: Any, value: Any) -> None:
    """The lower half of an int64."""
    store(b, address, b.trunc(value, I32))


@instruction(u8x16, _ADDRESS)
def load_bytes(b: Any, address: Any) -> Any:
    """16 uint8."""
    return load(b, address, lanes_of(I8))


@instruction(u8x16, _ADDRESS, types.int64)
def load_some_bytes(b: Any, address: Any, count: Any) -> Any:
    """The first ``count`` lanes from memory, 0 in the others."""
    return load_first(b, address, lanes_of(I8), tail_mask(b, count), 0)


@instruction(u8x16, types.int64)
def bytes_of(b: Any, value: Any) -> Any:
    """One uint8 in all lanes."""
    return splat(b, b.trunc(value, I8))


@instruction(u8x16, u8x16, u8x16)
def larger_bytes(b: Any, x: Any, y: Any) -> Any:
    """The larger of each pair."""
    return b.select(b.icmp_unsigned(">", x, y), x, y)


@instruction(types.none, _ADDRESS, types.int64, u8x16)
def store_some_bytes(b: Any, address: Any, count: Any, value: Any) -> None:
    """The first ``count`` lanes."""
    store_first(b, address, value, tail_mask(b, count))


@instruction(f32x16, u8x16)
def floats_of(b: Any, x: Any) -> Any:
    """16 uint8 as float32."""
    return b.uitofp(x, lanes_of(F32))


@instruction(types.float32, _ADDRESS)
def load_float(b: Any, address: Any) -> Any:
    """A float32."""
    return load(b, address, F32)


@instruction(types.none, _ADDRESS, types.float32)
def store_float(b: Any, address: Any, value: Any) -> None:
    """A float32."""
    store(b, address, value)


@instruction(f32x16, _ADDRESS)
def load_floats(b: Any, address: Any) -> Any:
    """16 float32."""
    return load(b, address, lanes_of(F32))


@instruction(f32x16, _ADDRESS, types.int64, types.float32)
def load_some_floats(b: Any, address: Any, count: Any, fill: Any) -> Any:
    """The first ``count`` lanes from memory, ``fill`` in the others."""
    mask = tail_mask(b, count)
    return b.select(mask, load_first(b, address, lanes_of(F32), mask, 0.0), splat(b, fill))


@instruction(types.none, _ADDRESS, f32x16)
def store_floats(b: Any, address: Any, value: Any) -> None:
    """16 float32."""
    store(b, address, value)


@instruction(types.none, _ADDRESS, types.int64, f32x16)
def store_some_floats(b: Any, address: Any, count: Any, value: Any) -> None:
    """The first ``count`` lanes."""
    store_first(b, address, value, tail_mask(b, count))


@instruction(f32x16, _ADDRESS)
def load_halves(b: Any, address: Any) -> Any:
    """16 float16 as float32."""
    return to_float(b, load(b, address, lanes_of(F16)))


@instruction(f32x16, _ADDRESS)
def load_codes(b: Any, address: Any) -> Any:
    """16 int8 as float32."""
    return to_float(b, load(b, address, lanes_of(I8)))


@instruction(f32x16, types.float32)
def floats(b: Any, value: Any) -> Any:
    """One value in all lanes."""
    return splat(b, value)


@instruction(f32x16, f32x16, f32x16)
def add(b: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return b.fadd(x, y)


@instruction(f32x16, f32x16, f32x16)
def subtract(b: Any, x: Any, y: Any) -> Any:
    """x - y."""
    return b.fsub(x, y)


@instruction(f32x16, f32x16, f32x16)
def multiply(b: Any, x: Any, y: Any) -> Any:
    """x y."""
    return b.fmul(x, y)


@instruction(f32x16, f32x16, f32x16)
def divide(b: Any, x: Any, y: Any) -> Any:
    """x / y."""
    return b.fdiv(x, y)


@instruction(f32x16, f32x16, f32x16, f32x16)
def multiply_add(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once."""
    return call(b, "llvm.fma.v16f32", x.type, x, y, z)


@instruction(f32x16, f32x16)
def partners(b: Any, x: Any) -> Any:
    """The two of each pair exchanged."""
    exchanged = ir.Constant(lanes_of(I32), [lane ^ 1 for lane in range(LANES)])
    return b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), exchanged)


@instruction(f32x16, f32x16, f32x16)
def larger(b: Any, x: Any, y: Any) -> Any:
    """x where it is larger or not a number, else y: one instruction, and what is not a number stays visible."""
    return b.select(b.fcmp_ordered("<", x, y), y, x)


@instruction(f32x16, f32x16, f32x16)
def largest_or_nan(b: Any, x: Any, y: Any) -> Any:
    """The larger of each pair, not a number where one of them is none: as numpy.maximum."""
    return b.select(b.fcmp_unordered("uno", y, y), y, b.select(b.fcmp_ordered("<", x, y), y, x))


@instruction(f32x16, f32x16, f32x16)
def smaller(b: Any, x: Any, y: Any) -> Any:
    """x where it is smaller or not a number, else y."""
    return b.select(b.fcmp_ordered(">", x, y), y, x)


@instruction(f32x16, f32x16)
def magnitude(b: Any, x: Any) -> Any:
    """abs x."""
    return call(b, "llvm.fabs.v16f32", x.type, x)


@instruction(f32x16, f32x16)
def nearest(b: Any, x: Any) -> Any:
    """Rounded to a whole number, half to even."""
    return call(b, "llvm.roundeven.v16f32", x.type, x)


@instruction(types.boolean, f32x16, f32x16)
def any_larger(b: Any, x: Any, y: Any) -> Any:
    """Whether x > y in any lane."""
    mask = b.bitcast(b.fcmp_ordered(">", x, y), I16)
    return b.icmp_unsigned("!=", mask, I16(0))


@instruction(types.float32, f32x16)
def sum_of(b: Any, x: Any) -> Any:
    """Sum of the lanes, by halves."""
    return _fold(b, x, b.fadd)


@instruction(types.float32, f32x16)
def largest_of(b: Any, x: Any) -> Any:
    """The largest lane."""
    return _fold(b, x, lambda p, q: b.select(b.fcmp_ordered("<", p, q), q, p))


@instruction(types.float32, f32x16)
def smallest_of(b: Any, x: Any) -> Any:
    """The smallest lane."""
    return _fold(b, x, lambda p, q: b.select(b.fcmp_ordered(">", p, q), q, p))


def _fold(b: ir.IRBuilder, x: Any, combine: Callable[[Any, Any], Any]) -> Any:
    count = LANES
    while count > 1:
        count //= 2
        undefined = ir.Constant(x.type, ir.Undefined)
        low, high = (
            b.shuffle_vector(x, undefined, ir.Constant(lanes_of(I32, count), list(range(start, start + count))))
            for start in (0, count)
        )
        x = combine(low, high)
    return b.extract_element(x, I32(0))


@instruction(f32x16, f32x16)
def power_of_two(b: Any, x: Any) -> Any:
    """2^x for whole x in -126..127: the exponent's bits."""
    exponent = b.add(b.fptosi(x, lanes_of(I32)), constant(lanes_of(I32), 127))
    return b.bitcast(b.shl(exponent, constant(lanes_of(I32), 23)), x.type)


@instruction(types.none, _ADDRESS, f32x16, types.int64, types.int64)
def store_grid_codes(b: Any, address: Any, real: Any, zero: Any, count: Any) -> None:
    """Store the first ``count`` of 16 uint8 codes: clip(rint(real) + zero, 0, 255)."""
    codes = saturated_codes(b, real, zero)
    store_first(b, address, codes, tail_mask(b, count))
