"""embedding, and the two position encodings: learned and sinusoidal.

A position encoding adds one vector per place. ``offset`` (N,) is the place of the first token of each row: absent, a row
starts at 0; with a KV cache it is the number of tokens that the row already holds.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mlperf_opt.errors import GraphError
from mlperf_opt.ops.base import Array, Cost, OpDef, Spec, expect, expect_float, is_whole, moved_bytes, no_macs
from mlperf_opt.ops.onnx_form import Form, counted, direct, ints, known, node


def infer_embedding(tokens: Spec, table: Spec) -> Spec:
    """Shape rule shared by embedding and qembedding."""
    expect(tokens.dtype.startswith("int"), f"embedding: tokens must be integers, got {tokens}")
    expect(len(table.shape) == 2, f"embedding: table must be (V, D), got {table}")
    return Spec((*tokens.shape, table.shape[1]), "float32")


def _infer(tokens: Spec, table: Spec) -> Spec:
    expect_float("embedding: table", table)
    return infer_embedding(tokens, table)


def check_tokens(tokens: Array, size: int) -> None:
    """Raise `GraphError` unless all ids are in 0..size - 1."""
    if tokens.size == 1 and tokens.dtype.kind in "iu":  # a decode step
        fits = 0 <= tokens.item() < size
    else:  # seen as unsigned a negative id is a huge one: one look instead of two
        fits = not tokens.size or tokens.view(f"u{tokens.itemsize}").max() < size
    if not fits:
        raise GraphError(f"embedding: token ids must be 0..{size - 1}, got {tokens.min()}..{tokens.max()}")


def _embedding(tokens: Array, table: Array) -> Array:
    check_tokens(tokens, len(table))
    return table.take(tokens, axis=0)


def _embedding_vjp(grad: Array, _out: Array, tokens: Array, table: Array) -> tuple[Array | None, Array]:
    return None, _summed_by_row(grad, tokens, len(table))


def _summed_by_row(grad: Array, rows: Array, count: int) -> Array:
    """Return (count, D): at each row the sum of the vectors of ``grad`` (..., D) that belong to it, added in their order.

    Number by number: `ufunc.at` is several times faster with one index than with rows, and adds in the same order.
    """
    width = grad.shape[-1]
    total = np.zeros(count * width, grad.dtype)
    places = rows.astype(np.intp, copy=False).reshape(-1, 1) * width + np.arange(width)
    np.add.at(total, places.reshape(-1), grad.reshape(-1))
    return total.reshape(count, width)


def embedding_cost(out: Spec, tokens: Spec, table: Spec) -> Cost:
    """No MACs; of the table only the rows looked up are read."""
    width = int(table.shape[1]) * np.dtype(table.dtype).itemsize
    return Cost(0, moved_bytes(out, tokens) + tokens.size * width)


def _places(x: Array, offset: Array | None, capacity: int) -> Array | slice:
    """Return the places of x (N, T, D): a slice for all rows, or (N, T) where each row has its own offset."""
    time = x.shape[1]
    if offset is None:
        if time > capacity:
            raise GraphError(f"positions: {time} tokens, but the model knows {capacity} places")
        return slice(0, time)
    return offset[:, None] if time == 1 else offset[:, None] + np.arange(time)


def _vectors(table: Array, places: Array | slice) -> Array:
    """Look the places up. Padding behind a short row may run past the end; its outputs are never used: any place will do."""
    return table[places] if isinstance(places, slice) else table.take(places, axis=0, mode="clip")


def _infer_learned(x: Spec, table: Spec, offset: Spec | None) -> Spec:
    expect(len(x.shape) == 3, f"positions: x must be (N, T, D), got {x}")
    expect(len(table.shape) == 2 and table.shape[1] == x.shape[2], f"positions: table {table} does not fit x {x}")
    _check_offset(x, offset)
    return x


def _check_offset(x: Spec, offset: Spec | None) -> None:
    expect_float("positions: x", x)
    expect(
        offset is None or (offset.shape == x.shape[:1] and offset.dtype == "int64"),
        f"positions: offset must be int64[{x.shape[0]}], got {offset}",
    )


def _learned(x: Array, table: Array, offset: Array | None) -> Array:
    return x + _vectors(table, _places(x, offset, len(table)))


def _learned_vjp(grad: Array, _out: Array, x: Array, table: Array, offset: Array | None) -> tuple[Array | None, ...]:
    places = _places(x, offset, len(table))
    if not isinstance(places, slice):
        return grad, _summed_by_row(grad, np.minimum(places, len(table) - 1), len(table)), None
    d_table = np.zeros(table.shape, grad.dtype)
    d_table[places] = grad.sum(axis=0)
    return grad, d_table, None


@lru_cache(maxsize=8)
def sinusoid_table(places: int, width: int) -> Array:
    """Return (places, width): sin and cos of place / 10000^(2i / width), interleaved (Vaswani, arXiv:1706.03762, 3.5)."""
    angle = np.arange(places)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    table = np.empty((places, width), np.float32)
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle[:, : width // 2])  # an odd width has one sine more
    table.setflags(write=False)
    return table


def _infer_sinusoidal(x: Spec, offset: Spec | None, *, context: int) -> Spec:
    expect(len(x.shape) == 3, f"positions: x must be (N, T, D), got {x}")
    expect(is_whole(context, 1), f"positions: context={context} must be a whole number >= 1")
    _check_offset(x, offset)
    return x


def _sinusoidal(x: Array, offset: Array | None, *, context: int) -> Array:
    table = sinusoid_table(context, x.shape[-1]).astype(x.dtype, copy=False)
    return x + _vectors(table, _places(x, offset, context))


def _onnx_positions(table: str | Array, capacity: int, offset: Spec | None) -> Form:
    if offset is None:  # the first T places, the same for every row
        first = (
            node("Shape", "x", to="time", start=1, end=2),
            node("Slice", table, ints(0), "time", ints(0), to="vectors"),
        )
    else:
        first = (
            *counted("x", 1, "time"),
            node("Unsqueeze", "offset", ints(1), to="start"),
            node("Add", "start", "time", to="unlimited"),
            node("Min", "unlimited", np.int64(capacity - 1), to="places"),  # (N, T); see `_places`
            node("Gather", table, "places", to="vectors", axis=0),
        )
    return (*first, node("Add", "x", "vectors"))


def _onnx_learned(_x: Spec, table: Spec, offset: Spec | None) -> Form:
    return _onnx_positions("table", known(table.shape[0], "the number of places"), offset)


def _onnx_sinusoidal(x: Spec, offset: Spec | None, *, context: int) -> Form:
    return _onnx_positions(sinusoid_table(context, known(x.shape[2], "the width")), context, offset)


EMBEDDING = OpDef(
    name="embedding",
    arguments=("tokens", "table"),
    infer=_infer,
    forward=_embedding,
    vjp=_embedding_vjp,
    cost=embedding_cost,
    onnx=direct("Gather", "table", "tokens", axis=0),
    parameters=("table",),
    matrix="table",
)
LEARNED_POSITIONS = OpDef(
    name="learned_positions",
    arguments=("x", "table", "offset?"),
    infer=_infer_learned,
    forward=_learned,
    vjp=_learned_vjp,
    cost=no_macs,
    onnx=_onnx_learned,
    parameters=("table",),
)
SINUSOIDAL_POSITIONS = OpDef(
    name="sinusoidal_positions",
    arguments=("x", "offset?"),
    infer=_infer_sinusoidal,
    forward=_sinusoidal,
    vjp=lambda grad, _out, _x, _offset, context: (grad, None),
    cost=no_macs,
    onnx=_onnx_sinusoidal,
)
