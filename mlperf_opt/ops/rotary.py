"""rotary: turn queries and keys by their place, so that their product depends on the distance of the two alone.

RoPE (Su et al., arXiv:2104.09864, 3.2): the numbers 2i and 2i + 1 of a head are a point in the plane, a complex number, and
the place m turns it by the angle m / 10000^(2i / d). Places count as for the position encodings of `embedding.py`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mlperf_opt.errors import GraphError
from mlperf_opt.ops.base import Array, OpDef, Spec, expect, expect_float, is_whole, no_macs
from mlperf_opt.ops.onnx_form import Form, counted, ints, known, node

_BASE = 10000.0


@lru_cache(maxsize=8)
def rotations(context: int, width: int) -> Array:
    """Return complex64 (context, width / 2): e^(i angle) of each place and pair of numbers."""
    table = turns(np.arange(context), width)
    table.setflags(write=False)
    return table


def turns(places: Array, width: int) -> Array:
    """Return complex64 (..., width / 2) for places (...). The angles are float64: far places keep their last bits too."""
    frequencies = _BASE ** (-np.arange(0, width, 2) / width)
    return np.exp(1j * (places[..., None] * frequencies)).astype(np.complex64)


def _infer(x: Spec, offset: Spec | None, *, width: int, context: int) -> Spec:
    expect(len(x.shape) == 3, f"rotary: x must be (N, T, D), got {x}")
    expect_float("rotary: x", x)
    expect(is_whole(width, 2) and width % 2 == 0, f"rotary: width={width} must be an even number: it is turned in pairs")
    fits = isinstance(x.shape[2], int) and x.shape[2] % width == 0
    expect(fits, f"rotary: width={width} must divide the last axis of x {x}")
    expect(is_whole(context, 1), f"rotary: context={context} must be a whole number >= 1")
    fits = offset is None or (offset.shape == x.shape[:1] and offset.dtype == "int64")
    expect(fits, f"rotary: offset must be int64[{x.shape[0]}], got {offset}")
    return x


def _factors(x: Array, offset: Array | None, width: int, context: int) -> Array:
    """The turns of x (N, T, D): (T, 1, width / 2), or (N, T, 1, width / 2) where each row has its own places."""
    time = x.shape[1]
    table = rotations(context, width)
    if offset is None:
        if time > context:
            raise GraphError(f"positions: {time} tokens, but the model knows {context} places")
        return table[:time, None]
    if time == 1 and len(offset) == 1 and offset[0] < context:  # a step of one sequence
        return table[offset[0]]
    places = offset[:, None] + np.arange(time)
    return table.take(places, axis=0, mode="clip")[:, :, None]


def _turn(x: Array, factors: Array, width: int) -> Array:
    pairs = np.complex64 if x.dtype == np.float32 else np.complex128
    points = np.ascontiguousarray(x).view(pairs).reshape(*x.shape[:2], -1, width // 2)
    return (points * factors).reshape(*x.shape[:2], -1).view(x.dtype)


def _forward(x: Array, offset: Array | None, *, width: int, context: int) -> Array:
    return _turn(x, _factors(x, offset, width, context), width)


def _vjp(grad: Array, _out: Array, x: Array, offset: Array | None, *, width: int, context: int) -> tuple[Array | None, ...]:
    """Turned back: the transpose of a rotation is its inverse."""
    return _turn(grad, _factors(x, offset, width, context).conj(), width), None


def rotation_rows(context: int, width: int) -> tuple[Array, Array]:
    """Return (cosines, sines with the sign that their partner takes), float32 (context, width) each.

    x turned is x * cosines + (x with the two of each pair exchanged) * sines.
    """
    parts = rotations(context, width).view(np.float32)  # cosine, sine of each pair
    cosines, sines = np.repeat(parts[:, 0::2], 2, axis=1), np.repeat(parts[:, 1::2], 2, axis=1)
    sines[:, 0::2] *= -1
    return cosines, sines


def _onnx(x: Spec, offset: Spec | None, *, width: int, context: int) -> Form:
    cosines, sines = rotation_rows(context, width)
    if offset is None:
        places: Form = (node("Shape", "x", to="time", start=1, end=2),)
        rows = tuple(
            node("Slice", table[:, None], ints(0), "time", ints(0), to=to)  # (T, 1, d)
            for table, to in ((cosines, "cosines"), (sines, "sines"))
        )
    else:
        places = (
            *counted("x", 1, "time"),
            node("Unsqueeze", "offset", ints(1), to="start"),
            node("Add", "start", "time", to="unlimited"),
            node("Min", "unlimited", np.int64(context - 1), to="places"),  # (N, T); padding, as in `embedding._vectors`
        )
        rows = tuple(
            node("Gather", table[:, None], "places", to=to, axis=0)  # (N, T, 1, d)
            for table, to in ((cosines, "cosines"), (sines, "sines"))
        )
    wide = known(x.shape[2], "the width")
    return (
        *places,
        *rows,
        node("Reshape", "x", ints(0, 0, wide // width, width), to="heads"),
        node("Reshape", "x", ints(0, 0, wide // 2, 2), to="pairs"),
        node("Gather", "pairs", ints(1, 0), to="exchanged", axis=3),
        node("Reshape", "exchanged", ints(0, 0, wide // width, width), to="partners"),
        node("Mul", "heads", "cosines", to="straight"),
        node("Mul", "partners", "sines", to="across"),
        node("Add", "straight", "across", to="turned"),
        node("Reshape", "turned", ints(0, 0, wide)),
    )


ROTARY = OpDef("rotary", ("x", "offset?"), _infer, _forward, _vjp, no_macs, _onnx)
