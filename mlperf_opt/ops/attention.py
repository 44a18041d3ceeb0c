"""Scaled dot-product attention over several heads, whole and cached (Vaswani, arXiv:1706.03762, 3.2).

Attention has no weights: its projections are linear nodes. The cached form is three ops: `cache_write` puts the new keys
(or values) behind those that the state holds, `cached_attention` reads them, `advance` moves each row's position.
"""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.ops.activation import softmax, softmax_vjp
from mlperf_opt.ops.base import Array, Cost, OpDef, Spec, are_known, expect, expect_float, is_whole, moved_bytes, no_macs
from mlperf_opt.ops.onnx_form import Form, counted, direct, ints, length, node


def split_heads(x: Array, heads: int) -> Array:
    """(N, T, D) -> (N, heads, T, D / heads)."""
    n, t, d = x.shape
    return x.reshape(n, t, heads, d // heads).transpose(0, 2, 1, 3)


def join_heads(x: Array) -> Array:
    """(N, heads, T, d) -> (N, T, heads * d)."""
    n, h, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(n, t, h * d)


def _check_width(width: int | str, heads: int) -> None:
    fits = isinstance(width, int) and is_whole(heads, 1) and width % heads == 0
    expect(fits, f"attention: heads={heads} must divide the width {width}")


def _infer(q: Spec, k: Spec, v: Spec, *, heads: int, causal: bool) -> Spec:
    expect(len(q.shape) == 3 and q == k == v, f"attention: q {q}, k {k}, v {v} must be equal (N, T, D)")
    expect_float("attention: q, k, v", q)
    _check_width(q.shape[2], heads)
    return q


def _weights(q: Array, k: Array, causal: bool) -> Array:
    """softmax(q k^T / sqrt(d)) of (N, heads, T, d) arrays; causal: place t sees places 0..t."""
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.mT
    if causal:
        t = scores.shape[-1]
        scores = np.where(np.tri(t, dtype=bool), scores, -np.inf)
    return softmax(scores)


def _forward(q: Array, k: Array, v: Array, *, heads: int, causal: bool) -> Array:
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    return join_heads(_weights(q, k, causal) @ v)


def _vjp(grad: Array, _out: Array, q: Array, k: Array, v: Array, *, heads: int, causal: bool) -> tuple[Array, Array, Array]:
    q, k, v, g = (split_heads(x, heads) for x in (q, k, v, grad))
    weights = _weights(q, k, causal)
    d_scores = softmax_vjp(g @ v.mT, weights) * (1 / math.sqrt(q.shape[-1]))
    d_v = weights.mT @ g
    return join_heads(d_scores @ k), join_heads(d_scores.mT @ q), join_heads(d_v)


def _cost(out: Spec, q: Spec, k: Spec, v: Spec, **_: int) -> Cost:
    # q k^T and weights v, computed whole also where a causal mask hides half
    return Cost(2 * out.size * int(q.shape[1]), moved_bytes(out, q, k, v))


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
    _check_width(q.shape[2], heads)
    _check_cache("cached_attention: q", q, keys)
    expect(keys.shape[1] == heads, f"cached_attention: heads={heads}, but the cache is {keys}")
    _check_rows(q, position)
    return q


def _cached(q: Array, keys: Array, values: Array, position: Array, *, heads: int) -> Array:
    """Attend from q's places position[n] + t to every cached place up to and including each."""
    q = split_heads(q, heads)
    rows, _, time, width = q.shape
    used = min(max(position.tolist()) + time, keys.shape[2])  # what lies behind the longest row is never read
    scores = (q * (1 / math.sqrt(width))) @ keys[:, :, :used].mT  # (N, heads, T, used)
    if rows > 1 or time > 1:  # a single new token sees all that is used
        places = position[:, None] + np.arange(time)  # (N, T)
        scores = np.where(np.arange(used) <= places[:, None, :, None], scores, -np.inf)
    return join_heads(softmax(scores) @ values[:, :, :used])


def _cached_cost(out: Spec, q: Spec, keys: Spec, values: Spec, position: Spec, **_: int) -> Cost:
    return Cost(2 * out.size * int(keys.shape[2]), moved_bytes(out, q, keys, values, position))


def _infer_advance(position: Spec, lengths: Spec) -> Spec:
    expect(len(position.shape) == 1, f"advance: position must be int64[N], got {position}")
    _check_rows(position, position, lengths)
    return position


# ONNX: the same products on (N, heads, T, d); 0 in a shape keeps that dimension


def _onnx_split(x: str, heads: int, width: int, to: str) -> Form:
    """`split_heads`."""
    return (
        node("Reshape", x, ints(0, 0, heads, width // heads), to=f"{to}_parts"),
        node("Transpose", f"{to}_parts", to=to, perm=[0, 2, 1, 3]),
    )


def _onnx_weighted(width: int, heads: int, keys: str, values: str, mask: str | None) -> Form:
    """The value of the op from ``queries``, ``keys`` and ``values`` (N, heads, places, d) and what a query may see."""
    scale = np.array(1 / math.sqrt(width // heads), np.float32)
    form = (
        node("Mul", "queries", scale, to="scaled"),
        node("Transpose", keys, to="keys_t", perm=[0, 1, 3, 2]),
        node("MatMul", "scaled", "keys_t", to="scores"),
    )
    if mask is not None:
        form += (node("Where", mask, "scores", np.array(-np.inf, np.float32), to="seen"),)
    return (
        *form,
        node("Softmax", "scores" if mask is None else "seen", to="shares", axis=-1),
        node("MatMul", "shares", values, to="mixed"),
        node("Transpose", "mixed", to="joined", perm=[0, 2, 1, 3]),
        node("Reshape", "joined", ints(0, 0, width)),
    )


def _onnx_attention(q: Spec, _k: Spec, _v: Spec, *, heads: int, causal: bool) -> Form:
    width = int(q.shape[2])
    form = (
        *_onnx_split("q", heads, width, "queries"),
        *_onnx_split("k", heads, width, "keys"),
        *_onnx_split("v", heads, width, "values"),
    )
    if causal:
        form += (
            *counted("q", 1, "time"),
            node("Unsqueeze", "time", ints(1), to="now"),
            node("LessOrEqual", "time", "now", to="mask"),  # (T, T)
        )
    return form + _onnx_weighted(width, heads, "keys", "values", "mask" if causal else None)


def _onnx_write(cache: Spec, new: Spec, _position: Spec, _lengths: Spec) -> Form:
    """Every place of the cache takes its own token of ``new``, if it has one: place p of row n token p - position[n].

    A choice instead of a scatter: what lies beyond a row's length or the capacity is never addressed.
    """
    heads, width = int(cache.shape[1]), int(new.shape[2])
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
        *_onnx_split("spread", heads, width, "candidates"),
        node("Where", "chosen", "candidates", "cache"),
    )


def _onnx_cached(q: Spec, _keys: Spec, _values: Spec, _position: Spec, *, heads: int) -> Form:
    width = int(q.shape[2])
    return (
        *_onnx_split("q", heads, width, "queries"),
        *counted("q", 1, "time"),
        *counted("keys", 2, "place"),
        node("Unsqueeze", "position", ints(1), to="start"),
        node("Add", "start", "time", to="own"),  # (N, T): the place of each query
        node("Unsqueeze", "own", ints(1, 3), to="now"),  # (N, 1, T, 1)
        node("LessOrEqual", "place", "now", to="mask"),  # (N, 1, T, L)
        *_onnx_weighted(width, heads, "keys", "values", "mask"),
    )


ATTENTION = OpDef("attention", ("q", "k", "v"), _infer, _forward, _vjp, _cost, _onnx_attention)
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
