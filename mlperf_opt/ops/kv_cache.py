"""Attention on a KV cache: `cache_write` puts the new keys (or values) behind those that the state holds, `cached_attention`
reads them, `advance` moves each row's position.

A cache has the heads of the keys, which may be fewer than those of the queries (see `attention.py`). It holds float32,
float16, or int8 codes on symmetric grids: keys on one for each channel, which doesn't change, values on one for each vector,
which a cache of its own remembers (KIVI: Liu et al., arXiv:2402.02750, who found that keys have channels of outliers and
values have not).

With a window (StreamingLLM: Xiao et al., arXiv:2309.17453) a token sees the first ``sinks`` tokens and the last ``window``,
itself included. A cache of sinks + window places is then a ring behind the sinks; a longer one holds all and hides some.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from mlperf_opt.ops.attention import check_heads, join_heads, split_groups
from mlperf_opt.ops.base import (
    Array,
    Cost,
    OpDef,
    Spec,
    are_known,
    expect,
    expect_float,
    is_whole,
    moved_bytes,
    no_macs,
    ones,
)
from mlperf_opt.ops.kv_cache_onnx import onnx_attention, onnx_scale, onnx_write
from mlperf_opt.ops.onnx_form import direct

CODE_LIMIT = 127  # of a symmetric int8 code
_HALF_LIMIT = float(np.finfo(np.float16).max)


def _infer_scale(x: Spec, *, heads: int) -> Spec:
    expect(len(x.shape) == 3, f"head_scale: x must be (N, T, D), got {x}")
    expect_float("head_scale: x", x)
    check_heads(x, heads)
    return Spec((*x.shape[:2], heads), x.dtype)


def _scale(x: Array, *, heads: int) -> Array:
    """The int8 scale of each head's vector, (N, T, heads): its largest magnitude is code 127; 1 where all is zero."""
    peaks = np.abs(x.reshape(*x.shape[:2], heads, -1)).max(axis=-1)
    return np.where(peaks > 0, np.maximum(peaks / x.dtype.type(CODE_LIMIT), np.finfo(np.float32).tiny), 1).astype(x.dtype)


def _infer_write(
    cache: Spec, new: Spec, position: Spec, lengths: Spec, scale: Spec | None = None, *, sinks: int = 0, window: int = 0
) -> Spec:
    expect(len(cache.shape) == 4, f"cache_write: cache must be (N, heads, L, d), got {cache}")
    expect(len(new.shape) == 3, f"cache_write: new must be (N, T, D), got {new}")
    expect_float("cache_write: new", new)
    n, heads, _, width = cache.shape
    expect(are_known(heads, width), f"cache_write: heads and width of the cache {cache} must be numbers")
    fits = new.shape[0] == n and new.shape[2] == int(heads) * int(width)
    expect(fits, f"cache_write: new {new} and the cache {cache} differ in batch or width")
    kinds = ("int8",) if scale else (new.dtype, "float16")
    expect(
        cache.dtype in kinds, f"cache_write: new {new} goes with a scale into int8, without into a float cache, not {cache}"
    )
    grids = ((heads, width), (*new.shape[:2], heads))
    fits = scale is None or (scale.shape in grids and scale.dtype == new.dtype)
    expect(fits, f"cache_write: scale {scale} must be one for each channel {grids[0]} or for each vector {grids[1]}")
    _check_rows(new, position, lengths)
    _check_window(sinks, window)
    return cache


def _check_rows(batch: Spec, *specs: Spec) -> None:
    for spec in specs:
        fits = spec.shape == batch.shape[:1] and spec.dtype == "int64"
        expect(fits, f"cache: positions and lengths must be int64[{batch.shape[0]}], got {spec}")


def _check_window(sinks: int, window: int) -> None:
    fits = is_whole(sinks, 0) and is_whole(window, 1 if sinks else 0)
    expect(
        fits, f"cache: sinks={sinks} and window={window} must be whole numbers, a window of at least 1 where there are sinks"
    )


def _write(
    cache: Array,
    new: Array,
    position: Array,
    lengths: Array,
    scale: Array | None = None,
    *,
    sinks: int = 0,
    window: int = 0,
) -> Array:
    """Put row n's first lengths[n] vectors at position[n]; the buffer of ``cache`` is overwritten and returned.

    With a window, what goes beyond the capacity comes round behind the sinks.
    """
    rows, heads, capacity, width = cache.shape
    if cache.dtype is not new.dtype:
        new = _stored(new.reshape(rows, -1, heads, width), cache.dtype, scale)
    if rows == new.shape[1] == lengths.item(0) == 1 and (start := position.item()) < capacity:  # a decode step of one row
        cache[0, :, start] = new.reshape(heads, width)
        return cache
    new = new.reshape(rows, -1, heads, width)
    for row, (start, count) in enumerate(zip(position.tolist(), lengths.tolist(), strict=True)):
        if window and start + count > capacity:
            places = np.arange(start, start + count)
            places = np.where(places < capacity, places, sinks + (places - sinks) % (capacity - sinks))
            cache[row][:, places] = new[row, :count].swapaxes(0, 1)
        else:
            cache[row, :, start : start + count] = new[row, :count].swapaxes(0, 1)
    return cache


def _stored(new: Array, dtype: np.dtype, scale: Array | None) -> Array:
    """What a cache holds of ``new`` (N, T, heads, d): rounded to the nearest, saturated at the ends."""
    if scale is not None:
        codes = np.rint(new / (scale if scale.ndim == 2 else scale[..., None]))
        return np.clip(codes, -CODE_LIMIT, CODE_LIMIT).astype(dtype)
    return np.clip(new, -_HALF_LIMIT, _HALF_LIMIT).astype(dtype) if dtype == np.float16 else new


def _infer_cached(
    q: Spec,
    keys: Spec,
    values: Spec,
    position: Spec,
    key_scale: Spec | None = None,
    value_scale: Spec | None = None,
    q_sinks: Spec | None = None,
    *,
    heads: int,
    sinks: int = 0,
    window: int = 0,
) -> Spec:
    expect(len(q.shape) == 3, f"cached_attention: q must be (N, T, D), got {q}")
    expect(
        len(keys.shape) == 4 and keys == values,
        f"cached_attention: keys {keys} and values {values} must be (N, heads, L, d)",
    )
    expect_float("cached_attention: q", q)
    n, groups, capacity, width = keys.shape
    fits = q.shape[0] == n and check_heads(q, heads) == width
    expect(fits, f"cached_attention: q {q} and the cache {keys} differ in batch or width of a head")
    fits = are_known(groups) and heads % int(groups) == 0
    expect(fits, f"cached_attention: the heads of {keys} must divide heads={heads}")
    kinds = ("int8",) if key_scale else (q.dtype, "float16")
    expect(keys.dtype in kinds, f"cached_attention: int8 keys have scales, float ones none, got {keys} and {key_scale}")
    grids = (Spec((groups, width), q.dtype), Spec((n, groups, capacity, 1), q.dtype))
    fits = (key_scale, value_scale) == (None, None) or (key_scale, value_scale) == grids
    expect(fits, f"cached_attention: scales must be {grids[0]} and {grids[1]}, got {key_scale} and {value_scale}")
    expect(q_sinks is None or q_sinks == q, f"cached_attention: q_sinks {q_sinks} and q {q} differ")
    _check_rows(q, position)
    _check_window(sinks, window)
    return q


def _cached(
    q: Array,
    keys: Array,
    values: Array,
    position: Array,
    key_scale: Array | None = None,
    value_scale: Array | None = None,
    q_sinks: Array | None = None,
    *,
    heads: int,
    sinks: int = 0,
    window: int = 0,
) -> Array:
    """Attend from q's places position[n] + t to the cached places that each may see, itself included.

    ``q_sinks`` are the queries that the sinks meet, where they differ: turned by their place in the cache, not in the text.
    """
    rows, groups, capacity, width = keys.shape
    time = q.shape[1]
    used = min(max(position.tolist()) + time, capacity)  # what lies behind the longest row is never read
    # all heads of all rows on one axis: products of three axes take less than those of four
    keys = keys.reshape(rows * groups, capacity, width)[:, :used]
    values = values.reshape(rows * groups, capacity, width)[:, :used]
    if keys.dtype.itemsize < 4:
        keys, values = keys.astype(q.dtype), values.astype(q.dtype)
    scores = _queries(q, heads, groups, key_scale) @ keys.mT  # (N * groups, heads a group * T, used)
    if q_sinks is not None:
        few = min(sinks, used)
        scores[..., :few] = _queries(q_sinks, heads, groups, key_scale) @ keys[:, :few].mT
    sees_all = rows == time == 1 and not (window and used > sinks + window)
    if not sees_all:
        own = (position[:, None] + np.arange(time))[:, None, None, :, None]  # the place of each query
        places = np.arange(used)
        hidden = places > own
        if window:  # a ring that has come round holds what may be seen, and nothing else
            hidden |= (places >= sinks) & (places <= own - window) & (own < capacity)
        np.copyto(scores.reshape(rows, groups, -1, time, used), -np.inf, where=hidden)
    # softmax, but that the few numbers that come out are divided, not the many shares
    if not (sees_all and _exp_is_safe(scores)):
        scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    shares = np.exp(scores, out=scores)
    sums = shares.dot(ones(capacity, q.dtype)[:used])
    if value_scale is not None:
        shares *= value_scale.reshape(rows * groups, capacity, 1)[:, :used].mT
    mixed = shares @ values
    mixed /= sums[..., None]
    return join_heads(mixed.reshape(rows, heads, time, width)) if time > 1 else mixed.reshape(q.shape)


def _exp_is_safe(scores: Array) -> bool:
    """Return whether exp of the scores, and what is made of it, are normal numbers, so that no score need be shifted.

    A million exp(30) times values of 1e19 are float32 numbers still, exp(-60) times values of 1e-11 normal ones; float16
    has no room for that. Finding each row's maximum and subtracting it takes three to four times as long as this in a
    decode step, min() and max() three times.
    """
    flat = scores.ravel()
    return scores.itemsize > 2 and -60 < flat.item(flat.argmin()) <= flat.item(flat.argmax()) < 30


def _queries(q: Array, heads: int, groups: int, key_scale: Array | None) -> Array:
    """Scaled queries (N * groups, heads a group * T, d), which take the keys' scales along: the codes need none then."""
    rows, time, wide = q.shape
    width = wide // heads
    queries = q * _root(width, q.dtype)
    if time > 1:  # of a single token the heads lie side by side already
        queries = split_groups(queries, heads, groups)
    if key_scale is not None:
        queries = queries.reshape(rows, groups, -1, width) * key_scale[:, None]
    return queries.reshape(rows * groups, -1, width)


@lru_cache(maxsize=8)
def _root(width: int, dtype: np.dtype) -> Array:
    """1 / sqrt(width) as an array, which takes half the time of a Python number."""
    return np.array(1 / math.sqrt(width), dtype)


def _cached_cost(out: Spec, q: Spec, keys: Spec, values: Spec, *specs: Spec | None, **_: int) -> Cost:
    return Cost(2 * out.size * int(keys.shape[2]), moved_bytes(out, q, keys, values, *specs))


def _infer_advance(position: Spec, lengths: Spec) -> Spec:
    expect(len(position.shape) == 1, f"advance: position must be int64[N], got {position}")
    _check_rows(position, position, lengths)
    return position


# These ops serve generation; training runs on the graph without state, so they have no gradient.
HEAD_SCALE = OpDef("head_scale", ("x",), _infer_scale, _scale, None, no_macs, onnx_scale)
CACHE_WRITE = OpDef(
    name="cache_write",
    arguments=("cache", "new", "position", "lengths", "scale?"),
    infer=_infer_write,
    forward=_write,
    vjp=None,
    cost=no_macs,
    onnx=onnx_write,
    in_place="cache",
)
CACHED_ATTENTION = OpDef(
    name="cached_attention",
    arguments=("q", "keys", "values", "position", "key_scale?", "value_scale?", "q_sinks?"),
    infer=_infer_cached,
    forward=_cached,
    vjp=None,
    cost=_cached_cost,
    onnx=onnx_attention,
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
