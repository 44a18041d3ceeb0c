"""Attention on a KV cache, in three ops: `cache_write` puts the new keys (or values) behind those that the state holds,
`cached_attention` reads them, `advance` moves each row's position.

A cache has the heads of the keys, which may be fewer than those of the queries (see `attention.py`).
"""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.ops.activation import softmax
from mlperf_opt.ops.attention import check_heads, join_heads, onnx_split, onnx_weighted, split_groups
from mlperf_opt.ops.base import Array, Cost, OpDef, Spec, are_known, expect, expect_float, moved_bytes, no_macs
from mlperf_opt.ops.onnx_form import Form, counted, direct, ints, length, node


def _infer_write(cache: Spec, new: Spec, position: Spec, lengths: Spec) -> Spec:
    expect(len(cache.shape) == 4, f"cache_write: cache must be (N, heads, L, d), got {cache}")
    expect(len(new.shape) == 3, f"cache_write: new must be (N, T, D), got {new}")
    _check_cache("cache_write: new", new, cache)
    _check_rows(new, position, lengths)
    return cache


def _check_cache(what: str, x: Spec, cache: Spec) -> None:
    """Check that x (N, T, D) and a cache (N, heads, L, d) belong together."""
    n, heads, _, width = cache.shape
    expect(are_known(heads, width), f"{what}: heads and width of the cache {cache} must be numbers")
    fits = x.shape[0] == n and x.shape[2] == int(heads) * int(width) and x.dtype == cache.dtype
    expect(fits, f"{what} {x} and the cache {cache} differ in batch, width or dtype")
    expect_float(what, x)


def _check_rows(batch: Spec, *specs: Spec) -> None:
    for spec in specs:
        fits = spec.shape == batch.shape[:1] and spec.dtype == "int64"
        expect(fits, f"cache: positions and lengths must be int64[{batch.shape[0]}], got {spec}")


def _write(cache: Array, new: Array, position: Array, lengths: Array) -> Array:
    """Put row n's first lengths[n] vectors at position[n]; the buffer of ``cache`` is overwritten and returned."""
    rows, heads, _, width = cache.shape
    new = new.reshape(rows, -1, heads, width)
    for row, (start, count) in enumerate(zip(position.tolist(), lengths.tolist(), strict=True)):
        cache[row, :, start : start + count] = new[row, :count].swapaxes(0, 1)
    return cache


def _infer_cached(q: Spec, keys: Spec, values: Spec, position: Spec, *, heads: int) -> Spec:
    expect(len(q.shape) == 3, f"cached_attention: q must be (N, T, D), got {q}")
    expect(
        len(keys.shape) == 4 and keys == values,
        f"cached_attention: keys {keys} and values {values} must be (N, heads, L, d)",
    )
    n, groups, _, width = keys.shape
    fits = q.shape[0] == n and q.dtype == keys.dtype and check_heads(q, heads) == width
    expect(fits, f"cached_attention: q {q} and the cache {keys} differ in batch, width of a head or dtype")
    expect(
        are_known(groups) and heads % int(groups) == 0, f"cached_attention: the heads of {keys} must divide heads={heads}"
    )
    expect_float("cached_attention: q", q)
    _check_rows(q, position)
    return q


def _cached(q: Array, keys: Array, values: Array, position: Array, *, heads: int) -> Array:
    """Attend from q's places position[n] + t to every cached place up to and including each."""
    rows, groups, capacity, width = keys.shape
    time = q.shape[1]
    used = min(max(position.tolist()) + time, capacity)  # what lies behind the longest row is never read
    queries = split_groups(q * (1 / math.sqrt(width)), heads, groups).reshape(rows, groups, -1, width)
    scores = queries @ keys[:, :, :used].mT  # (N, groups, heads a group * T, used)
    if rows > 1 or time > 1:  # a single new token sees all that is used
        places = position[:, None] + np.arange(time)  # (N, T)
        hidden = np.arange(used) > places[:, None, None, :, None]
        np.copyto(scores.reshape(rows, groups, -1, time, used), -np.inf, where=hidden)
    mixed = softmax(scores, out=scores) @ values[:, :, :used]
    return join_heads(mixed.reshape(rows, heads, time, width))


def _cached_cost(out: Spec, q: Spec, keys: Spec, values: Spec, position: Spec, **_: int) -> Cost:
    return Cost(2 * out.size * int(keys.shape[2]), moved_bytes(out, q, keys, values, position))


def _infer_advance(position: Spec, lengths: Spec) -> Spec:
    expect(len(position.shape) == 1, f"advance: position must be int64[N], got {position}")
    _check_rows(position, position, lengths)
    return position


# ONNX


def _onnx_write(cache: Spec, new: Spec, _position: Spec, _lengths: Spec) -> Form:
    """Every place of the cache takes its own token of ``new``, if it has one: place p of row n token p - position[n].

    A choice instead of a scatter: what lies beyond a row's length or the capacity is never addressed.
    """
    heads, width = int(cache.shape[1]), int(cache.shape[3])
    zero = np.int64(0)
    return (
        *counted("cache", 2, "place"),
        node("Unsqueeze", "position", ints(1), to="start"),
        node("Unsqueeze", "lengths", ints(1), to="count"),
        node("Sub", "place", "start", to="token"),  # (N, L)
        node("GreaterOrEqual", "token", zero, to="begun"),
        node("Less", "token", "count", to="within"),
        node("And", "begun", "within", to="written"),
        node("Unsqueeze", "written", ints(1, 3), to="chosen"),  # (N, 1, L, 1)
        *length("new", 1, "time"),
        node("Sub", "time", np.int64(1), to="last"),
        node("Max", "token", zero, to="not_before"),
        node("Min", "not_before", "last", to="legal"),
        node("Unsqueeze", "legal", ints(2), to="index"),
        node("GatherND", "new", "index", to="spread", batch_dims=1),  # (N, L, D)
        *onnx_split("spread", heads, width, "candidates"),
        node("Where", "chosen", "candidates", "cache"),
    )


def _onnx_cached(_q: Spec, keys: Spec, _values: Spec, _position: Spec, *, heads: int) -> Form:
    groups, width = int(keys.shape[1]), int(keys.shape[3])
    return (
        *onnx_split("q", heads, width, "queries"),
        *counted("q", 1, "time"),
        *counted("keys", 2, "place"),
        node("Unsqueeze", "position", ints(1), to="start"),
        node("Add", "start", "time", to="own"),  # (N, T): the place of each query
        node("Unsqueeze", "own", ints(1, 3), to="now"),  # (N, 1, T, 1)
        node("LessOrEqual", "place", "now", to="mask"),  # (N, 1, T, L)
        *onnx_weighted(heads, width, groups, "keys", "values", "mask"),
    )


# The cached ops serve generation; training runs on the graph without state, so they have no gradient.
CACHE_WRITE = OpDef(
    name="cache_write",
    arguments=("cache", "new", "position", "lengths"),
    infer=_infer_write,
    forward=_write,
    vjp=None,
    cost=no_macs,
    onnx=_onnx_write,
    in_place="cache",
)
CACHED_ATTENTION = OpDef(
    "cached_attention",
    ("q", "keys", "values", "position"),
    _infer_cached,
    _cached,
    None,
    _cached_cost,
    _onnx_cached,
)
ADVANCE = OpDef(
    "advance",
    ("position", "lengths"),
    _infer_advance,
    lambda position, lengths: position + lengths,
    None,
    no_macs,
    direct("Add", "position", "lengths"),
)
