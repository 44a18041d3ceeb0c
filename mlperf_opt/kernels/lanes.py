"""Moves across lanes: gather, scatter, and the transposition of 16 x 16 elements of four bytes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from mlperf_opt.kernels.emit import (
    F32,
    I32,
    I64,
    LANES,
    at,
    call,
    instruction,
    lanes_of,
    load_first,
    number,
    store,
    tail_mask,
)  # fmt: skip

_EVERY = ir.Constant(lanes_of(ir.IntType(1)), [1] * LANES)
_NAMES = {F32: "f32", I32: "i32"}


def _addresses(b: ir.IRBuilder, base: Any, places: Any, element: Any) -> Any:
    """16 pointers: element ``places[i]`` behind ``base``. One instruction of a base and 32-bit indices comes of it."""
    pointers = b.gep(at(b, base, element), [b.zext(places, lanes_of(I64))], source_etype=element)
    pointers.type = ir.VectorType(pointers.type, LANES)  # llvmlite leaves vectors of addresses to its callers
    return pointers


def gather(b: ir.IRBuilder, base: Any, places: Any, element: Any) -> Any:
    """The elements of four bytes with these numbers (16 unsigned integers) behind the address ``base``."""
    kind = lanes_of(element)
    name = f"llvm.masked.gather.v{LANES}{_NAMES[element]}.v{LANES}p0"
    return call(b, name, kind, _addresses(b, base, places, element), I32(4), _EVERY, ir.Constant(kind, ir.Undefined))


def scatter(b: ir.IRBuilder, base: Any, places: Any, value: Any) -> None:
    """Store the lanes as the elements with these numbers (16 unsigned integers, no two the same)."""
    element = value.type.element
    name = f"llvm.masked.scatter.v{LANES}{_NAMES[element]}.v{LANES}p0"
    call(b, name, ir.VoidType(), value, _addresses(b, base, places, element), I32(4), _EVERY)


@instruction(types.none, *[types.int64] * 6)
def transpose(b: Any, x: Any, step: Any, last: Any, count: Any, out: Any, out_step: Any) -> None:
    """Store 16 lines of ``count`` elements of four bytes as columns; lines behind number ``last`` repeat that one.

    Args:
        x: address of the first line; ``step`` bytes from line to line.
        last: number of the last line that may be read.
        count: elements of a line that may be read, any number; of more than 16 the first 16, the rest is undefined.
        out: address of 16 lines of 16 elements, ``out_step`` bytes from line to line.
    """
    mask, vector = tail_mask(b, count), lanes_of(I32)
    lines = []
    for i in range(LANES):
        line = b.select(b.icmp_signed("<", number(i), last), number(i), last)
        lines.append(load_first(b, b.add(x, b.mul(line, step)), vector, mask, 0))
    half = LANES // 2
    while half:  # swap the off-diagonal quarters of blocks of twice that size (Eklundh, 1972)
        upper = [lane if not lane & half else LANES + lane - half for lane in range(LANES)]
        lower = [lane + half if not lane & half else LANES + lane for lane in range(LANES)]
        for i in (i for i in range(LANES) if not i & half):
            pair = lines[i], lines[i + half]
            lines[i], lines[i + half] = (b.shuffle_vector(*pair, ir.Constant(vector, order)) for order in (upper, lower))
        half //= 2
    for i, line in enumerate(lines):
        store(b, b.add(out, b.mul(out_step, number(i))), line)
