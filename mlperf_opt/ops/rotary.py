"""rotary: turn queries and keys by their place, so that their product depends on the distance of the two alone.

RoPE (Su et al., arXiv:2104.09864, 3.2): the numbers 2i and 2i + 1 of a head are a point in the plane, a complex number, and
the place m turns it by the angle m / 10000^(2i / d). Places count as for the position encodings of `embedding.py`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mlperf_opt.errors import GraphError
from mlperf_opt.ops.base import Array, OpDef, Spec, expect, expect_float, is_whole, no_macs
from mlperf_opt.ops.onnx_form import Form, cast, counted, ints, known, node

_BASE = 10000.0


@lru_cache(maxsize=8)
def rotations(context: int, width: int) -> Array:
    """Return complex64 (context, width / 2): e^(i angle) of each place and pair of numbers."""
    table = turns(np.arange(context), width)
    table.setflags(write=False)
    return table


def turns(places: Array, width: int) -> Array:
    """Return complex64 (..., width / 2) for places (...). The angles are float64: far places keep their last bits too."""
    return np.exp(1j * (places[..., None] * frequencies(width))).astype(np.complex64)


def frequencies(width: int) -> Array:
    """Return float64 (width / 2): the angle of each pair of a head at place 1."""
    return _BASE ** (-np.arange(0, width, 2) / width)


def _infer(x: Spec, offset: Spec | None, *, width: int, context: int, reach: int = 0) -> Spec:
    expect(len(x.shape) == 3, f"rotary: x must be (N, T, D), got {x}")
    expect_float("rotary: x", x)
    expect(is_whole(width, 2) and width % 2 == 0, f"rotary: width={width} must be an even number: it is turned in pairs")
    fits = isinstance(x.shape[2], int) and x.shape[2] % width == 0
    expect(fits, f"rotary: width={width} must divide the last axis of x {x}")
    expect(is_whole(context, 1), f"rotary: context={context} must be a whole number >= 1")
    expect(is_whole(reach, 0), f"rotary: reach={reach} must be a whole number >= 0")
    fits = offset is None or (offset.shape == x.shape[:1] and offset.dtype == "int64")
    expect(fits, f"rotary: offset must be int64[{x.shape[0]}], got {offset}")
    return x


def _factors(x: Array, offset: Array | None, width: int, context: int, reach: int) -> Array:
    """The turns of x (N, T, D): (T, 1, width / 2), or (N, T, 1, width / 2) where each row has its own places."""
    time = x.shape[1]
    table = rotations(context, width)
    if offset is None:
        if time > context:
            raise GraphError(f"positions: {time} tokens, but the model knows {context} places")
        return table[:time, None]
    # looks at numbers of Python where it can: in a step of one token an array of one number costs as much as the turn itself
    furthest = max(offset.tolist(), default=0) + time - 1
    places = offset[:, None] if time == 1 else offset[:, None] + np.arange(time)
    if reach and furthest > reach:
        places, furthest = np.minimum(places, reach), reach
    return (table.take(places, axis=0) if furthest < context else turns(places, width))[:, :, None]


def _turn(x: Array, factors: Array, width: int) -> Array:
    pairs = np.complex64 if x.dtype == np.float32 else np.complex128
    points = np.ascontiguousarray(x).view(pairs).reshape(*x.shape[:2], -1, width // 2)
    return (points * factors).reshape(*x.shape[:2], -1).view(x.dtype)


def _forward(x: Array, offset: Array | None, *, width: int, context: int, reach: int = 0) -> Array:
    """Turn x (N, T, D). Places behind the context have turns too: with a window only the distances matter.

    ``reach`` > 0: a place beyond it counts as it, as that of a query in a cache that has let go of what lay between.
    """
    return _turn(x, _factors(x, offset, width, context, reach), width)


def _vjp(
    grad: Array, _out: Array, x: Array, offset: Array | None, *, width: int, context: int, reach: int = 0
) -> tuple[Array | None, ...]:
    """Turned back: the transpose of a rotation is its inverse."""
    return _turn(grad, _factors(x, offset, width, context, reach).conj(), width), None


def rotation_rows(context: int, width: int) -> tuple[Array, Array]:
    """Return (cosines, sines with the sign that their partner takes), float32 (context, width) each.

    x turned is x * cosines + (x with the two of each pair exchanged) * sines.
    """
    parts = rotations(context, width).view(np.float32)  # cosine, sine of each pair
    cosines, sines = np.repeat(parts[:, 0::2], 2, axis=1), np.repeat(parts[:, 1::2], 2, axis=1)
    sines[:, 0::2] *= -1
    return cosines, sines


def _onnx(x: Spec, offset: Spec | None, *, width: int, context: int, reach: int = 0) -> Form:
    """Angles are computed where they are needed, in float64 until they are less than a full turn."""
    wide = known(x.shape[2], "the width")
    places: Form = counted("x", 1, "place")
    if offset is not None:
        places = (
            *counted("x", 1, "time"),
            node("Unsqueeze", "offset", ints(1), to="start"),
            node("Add", "start", "time", to="unlimited"),  # (N, T)
            node("Min", "unlimited", np.int64(reach or np.iinfo(np.int64).max), to="place"),
        )
    signs = np.tile(np.array([-1, 1], np.float32), width // 2)
    return (
        *places,
        cast("place", "float64", to="real_place"),
        node("Unsqueeze", "real_place", ints(-1, -2), to="each_place"),  # (T, 1, 1), or (N, T, 1, 1)
        node("Mul", "each_place", np.repeat(frequencies(width), 2), to="angles"),
        node("Mod", "angles", np.float64(2 * np.pi), to="turns", fmod=1),
        cast("turns", "float32", to="within"),
        node("Cos", "within", to="cosines"),
        node("Sin", "within", to="unsigned"),
        node("Mul", "unsigned", signs, to="sines"),
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
