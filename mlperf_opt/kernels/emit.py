"""Building blocks that emit LLVM instructions: for the vector instructions of `simd.py`, and for generators of whole loops.

All are ordinary vector IR, which LLVM maps to what the CPU has: one AVX-512 instruction, or two of AVX2. A function takes
the builder ``b`` and LLVM values. An address is an int64; nothing is checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mlperf_opt.kernels.jit import features

LANES = 16
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()


def lanes_of(element: Any, count: int = LANES) -> ir.VectorType:
    """The LLVM type of ``count`` elements."""
    return ir.VectorType(element, count)


def at(b: ir.IRBuilder, address: Any, kind: Any) -> Any:
    """A pointer to ``kind`` at an address."""
    return b.inttoptr(address, kind.as_pointer())


def load(b: ir.IRBuilder, address: Any, kind: Any) -> Any:
    """An unaligned load."""
    value: Any = b.load(at(b, address, kind), typ=kind)
    value.align = 1
    return value


def store(b: ir.IRBuilder, address: Any, value: Any) -> None:
    """An unaligned store."""
    stored: Any = b.store(value, at(b, address, value.type))
    stored.align = 1


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


def held_back(b: ir.IRBuilder, value: Any) -> Any:
    """The same int64, of which LLVM knows nothing: what is made of it is made here, not in front of the loops around."""
    return b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [value], side_effect=True)


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
    if value.type.element != F16:
        return b.sitofp(value, wide)
    if "f16c" in features():
        return b.fpext(value, wide)
    # Without an instruction LLVM would call a function that is not there. Exponent and fraction, moved to their place in a
    # float32, stand for the value times 2^-112, numbers below the normal range too; weights are finite.
    bits = b.zext(b.bitcast(value, lanes_of(I16)), lanes_of(I32))
    size = b.shl(b.and_(bits, constant(lanes_of(I32), 0x7FFF)), constant(lanes_of(I32), 13))
    size = b.fmul(b.bitcast(size, wide), constant(wide, 2.0**112))
    sign = b.shl(b.and_(bits, constant(lanes_of(I32), 0x8000)), constant(lanes_of(I32), 16))
    return b.bitcast(b.or_(b.bitcast(size, lanes_of(I32)), sign), wide)


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
