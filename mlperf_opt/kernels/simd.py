"""Vectors of 16 lanes, and loads and stores at addresses, for kernels in numba.

numba has no vector types and no unaligned loads of one type from memory of another; these are a type and a few LLVM
instructions each. All are ordinary vector IR, which LLVM maps to whatever the CPU has: one AVX-512 instruction, or two of AVX2.

An address is an int64. Memory is as numpy laid it out; nothing is checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()


def lanes_of(element: Any, count: int = LANES) -> ir.VectorType:
    """The LLVM type of ``count`` elements."""
    return ir.VectorType(element, count)


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


# building blocks, for this file and for the generators of whole loops


def at(b: ir.IRBuilder, address: Any, kind: Any) -> Any:
    """A pointer to ``kind`` at an address."""
    return b.inttoptr(address, kind.as_pointer())


def load(b: ir.IRBuilder, address: Any, kind: Any) -> Any:
    """An unaligned load."""
    value = b.load(at(b, address, kind), typ=kind)
    value.align = 1
    return value


def store(b: ir.IRBuilder, address: Any, value: Any) -> None:
    """An unaligned store."""
    b.store(value, at(b, address, value.type)).align = 1


def splat(b: ir.IRBuilder, scalar: Any, count: int = LANES) -> Any:
    """One value in all lanes."""
    kind = lanes_of(scalar.type, count)
    undefined = ir.Constant(kind, ir.Undefined)
    one = b.insert_element(undefined, scalar, I32(0))
    return b.shuffle_vector(one, undefined, ir.Constant(lanes_of(I32, count), [0] * count))


def number(value: int) -> Any:
    """An int64 constant."""
    return ir.Constant(I64, value)


def constant(kind: Any, value: float) -> Any:
    """One constant in all lanes of a vector type."""
    return ir.Constant(kind, [value] * kind.count)


def call(b: ir.IRBuilder, name: str, result: Any, *arguments: Any) -> Any:
    """Call an LLVM intrinsic by its full name."""
    function = cgutils.get_or_insert_function(b.module, ir.FunctionType(result, [a.type for a in arguments]), name)
    return b.call(function, arguments)


def tail_mask(b: ir.IRBuilder, count: Any) -> Any:
    """True in the first ``count`` (int64, any value) lanes."""
    places = ir.Constant(lanes_of(I64), list(range(LANES)))
    return b.icmp_signed("<", places, splat(b, count))


_SUFFIX = {F32: "f32", I32: "i32", I8: "i8", F16: "f16"}


def store_first(b: ir.IRBuilder, address: Any, value: Any, mask: Any) -> None:
    """Store the lanes where the mask is true; the memory of the others is not touched."""
    name = f"llvm.masked.store.v{LANES}{_SUFFIX[value.type.element]}.p0"
    call(b, name, ir.VoidType(), value, at(b, address, value.type), I32(1), mask)


def load_first(b: ir.IRBuilder, address: Any, kind: Any, mask: Any, fill: float) -> Any:
    """Load the lanes where the mask is true; the others are ``fill``, their memory is not touched."""
    name = f"llvm.masked.load.v{LANES}{_SUFFIX[kind.element]}.p0"
    return call(b, name, kind, at(b, address, kind), I32(1), mask, constant(kind, fill))


def to_float(b: ir.IRBuilder, value: Any) -> Any:
    """16 x int8 (signed) or float16 as float32."""
    wide = lanes_of(F32)
    return b.fpext(value, wide) if value.type.element == F16 else b.sitofp(value, wide)


def instruction(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Turn ``emit(builder, *LLVM values) -> LLVM value`` into a function that kernels can call, with fixed numba types."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def typed(_context: Any, *_given: Any) -> Any:
            def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
                made = emit(builder, *values)
                return context.get_dummy_value() if result == types.none else made

            return result(*arguments), codegen

        # numba reads the number of arguments off the signature
        names = ["context", *(f"a{i}" for i in range(len(arguments)))]
        typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        typed.__name__ = typed.__qualname__ = emit.__name__
        typed.__module__ = emit.__module__
        return intrinsic(typed)

    return decorate


# what kernels call


@instruction(types.int64, _ADDRESS)
def load_int(b: Any, address: Any) -> Any:
    """An int64."""
    return load(b, address, I64)


@instruction(types.none, _ADDRESS, types.int64)
def store_int(b: Any, address: Any, value: Any) -> None:
    store(b, address, value)


@instruction(types.int64, _ADDRESS)
def load_int32(b: Any, address: Any) -> Any:
    """An int32, widened."""
    return b.sext(load(b, address, I32), I64)


@instruction(types.none, _ADDRESS, types.int64)
def store_int32(b: Any, address: Any, value: Any) -> None:
    store(b, address, b.trunc(value, I32))


@instruction(u8x16, _ADDRESS)
def load_bytes(b: Any, address: Any) -> Any:
    """16 uint8."""
    return load(b, address, lanes_of(I8))


@instruction(u8x16, types.int64)
def bytes_of(b: Any, value: Any) -> Any:
    """One uint8 in all lanes."""
    return splat(b, b.trunc(value, I8))


@instruction(u8x16, u8x16, u8x16)
def larger_bytes(b: Any, x: Any, y: Any) -> Any:
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
    return load(b, address, F32)


@instruction(types.none, _ADDRESS, types.float32)
def store_float(b: Any, address: Any, value: Any) -> None:
    store(b, address, value)


@instruction(f32x16, _ADDRESS)
def load_floats(b: Any, address: Any) -> Any:
    return load(b, address, lanes_of(F32))


@instruction(f32x16, _ADDRESS, types.int64, types.float32)
def load_some_floats(b: Any, address: Any, count: Any, fill: Any) -> Any:
    """The first ``count`` lanes from memory, ``fill`` in the others."""
    mask = tail_mask(b, count)
    return b.select(mask, load_first(b, address, lanes_of(F32), mask, 0.0), splat(b, fill))


@instruction(types.none, _ADDRESS, f32x16)
def store_floats(b: Any, address: Any, value: Any) -> None:
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
    return b.fadd(x, y)


@instruction(f32x16, f32x16, f32x16)
def subtract(b: Any, x: Any, y: Any) -> Any:
    return b.fsub(x, y)


@instruction(f32x16, f32x16, f32x16)
def multiply(b: Any, x: Any, y: Any) -> Any:
    return b.fmul(x, y)


@instruction(f32x16, f32x16, f32x16)
def divide(b: Any, x: Any, y: Any) -> Any:
    return b.fdiv(x, y)


@instruction(f32x16, f32x16, f32x16, f32x16)
def multiply_add(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once."""
    return call(b, "llvm.fma.v16f32", x.type, x, y, z)


@instruction(f32x16, f32x16, f32x16)
def larger(b: Any, x: Any, y: Any) -> Any:
    """x where it is larger or not a number, else y: one instruction, and what is not a number stays visible."""
    return b.select(b.fcmp_ordered("<", x, y), y, x)


@instruction(f32x16, f32x16, f32x16)
def smaller(b: Any, x: Any, y: Any) -> Any:
    """x where it is smaller or not a number, else y."""
    return b.select(b.fcmp_ordered(">", x, y), y, x)


@instruction(f32x16, f32x16)
def magnitude(b: Any, x: Any) -> Any:
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
    return _fold(b, x, lambda p, q: b.select(b.fcmp_ordered("<", p, q), q, p))


@instruction(types.float32, f32x16)
def smallest_of(b: Any, x: Any) -> Any:
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


def saturated_codes(b: ir.IRBuilder, real: Any, zero: Any) -> Any:
    """16 float32 -> uint8 codes: clip(rint(real) + zero, 0, 255), as `ops.quantized.saturate` of the rounded values.

    1.5 x 2^23 added to a float of at most 510 leaves it rounded, half to even, in the lowest bits of the sum.
    """
    wide, magic = lanes_of(I32), 12582912.0
    low, high = constant(real.type, -510.0), constant(real.type, 510.0)
    near = b.select(b.fcmp_ordered("<", real, low), low, real)
    near = b.select(b.fcmp_ordered(">", near, high), high, near)
    bits = b.bitcast(b.fadd(near, constant(real.type, magic)), wide)
    codes = b.add(bits, splat(b, b.sub(b.trunc(zero, I32), I32(0x4B400000))))
    codes = b.select(b.icmp_signed("<", codes, constant(wide, 0)), constant(wide, 0), codes)
    codes = b.select(b.icmp_unsigned(">", codes, constant(wide, 255)), constant(wide, 255), codes)
    return b.trunc(codes, lanes_of(I8))
