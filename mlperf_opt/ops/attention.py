"""Scaled dot-product attention over several heads (Vaswani, arXiv:1706.03762, 3.2).

Attention has no weights: its projections are linear nodes. Keys and values may have fewer heads than queries: each of them
then serves a group of consecutive query heads (grouped-query attention: Ainslie et al., arXiv:2305.13245). Their width tells
how many there are. `kv_cache.py` has the cached form.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from mlperf_opt.ops.activation import softmax
from mlperf_opt.ops.base import Array, Cost, OpDef, Spec, are_known, expect, expect_float, is_whole, moved_bytes
from mlperf_opt.ops.onnx_form import Form, counted, ints, node

# Queries that are worked on together. Under a causal mask they need the keys up to the last of them only, so that a long
# sequence costs little more than the half that the mask lets through, and their scores stay in the cache.
_BLOCK = 64


def join_heads(x: Array) -> Array:
    """(N, heads, T, d) -> (N, T, heads * d)."""
    n, h, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(n, t, h * d)


def split_groups(q: Array, heads: int, groups: int) -> Array:
    """(N, T, heads * d) -> (N, groups, heads / groups, T, d): the queries that share a head of keys lie side by side."""
    n, t, d = q.shape
    return q.reshape(n, t, groups, heads // groups, d // heads).transpose(0, 2, 3, 1, 4)


def check_heads(q: Spec, heads: int) -> int:
    """Return the width of a head of q (N, T, D). Raises `GraphError` where ``heads`` doesn't divide D."""
    width = q.shape[2]
    fits = isinstance(width, int) and is_whole(heads, 1) and width % heads == 0
    expect(fits, f"attention: heads={heads} must divide the width {width}")
    return int(width) // heads


def _infer(q: Spec, k: Spec, v: Spec, *, heads: int, causal: bool) -> Spec:
    expect(len(q.shape) == 3, f"attention: q must be (N, T, D), got {q}")
    expect(k == v and k.shape[:2] == q.shape[:2], f"attention: q {q}, k {k}, v {v} must be (N, T, D), k and v alike")
    expect(k.dtype == q.dtype, f"attention: q {q} and k {k} differ in dtype")
    expect_float("attention: q, k, v", q)
    width = check_heads(q, heads)
    check_groups("attention", k.shape[2], width, heads)
    return q


def check_groups(what: str, wide: int | str, width: int, heads: int) -> None:
    """Raise `GraphError` unless keys of ``wide`` numbers are heads of ``width`` that share the query heads out evenly."""
    fits = are_known(wide) and int(wide) >= width and int(wide) % width == 0 and heads % (int(wide) // width) == 0
    expect(fits, f"{what}: keys of width {wide} must be heads of {width}, as many as divide heads={heads}")


@lru_cache(maxsize=8)
def _future(size: int) -> Array:
    """(keys, queries), both ``size``: -inf where a key lies behind the query, 0 elsewhere."""
    mask = np.where(np.tri(size, dtype=bool).T, np.float32(0), np.float32(-np.inf))
    mask.setflags(write=False)
    return mask


def _blocks(time: int, causal: bool) -> list[tuple[slice, slice]]:
    """Return (queries, the keys that they may see) of ``time`` places, from the last to the first."""
    step = _BLOCK if causal else max(time, 1)
    ends = [(first, min(first + step, time)) for first in range(0, time, step)]
    return [(slice(first, last), slice(0, last)) for first, last in reversed(ends)]


def _shares(q: Array, k: Array, causal: bool) -> Array:
    """softmax(k q^T) over the keys (..., S, d), as (..., S, B): the scaled queries (..., B, d) stand at the last B places.

    The keys come first because numpy finds a maximum or a sum several times faster across rows than along them.
    """
    scores = k @ q.mT
    if causal:
        block = q.shape[-2]
        scores[..., -block:, :] += _future(block)
    return softmax(scores, axis=-2, out=scores)


def _heads_of(q: Array, k: Array, v: Array, heads: int) -> tuple[Array, Array, Array]:
    """Views: q (N, groups, heads a group, T, d), k and v (N, groups, 1, T, d)."""
    groups = k.shape[2] * heads // q.shape[2]
    return split_groups(q, heads, groups), split_groups(k, groups, groups), split_groups(v, groups, groups)


def _forward(q: Array, k: Array, v: Array, *, heads: int, causal: bool) -> Array:
    out = np.empty(q.shape, q.dtype)
    queries, keys, values = _heads_of(q * (1 / math.sqrt(q.shape[2] // heads)), k, v, heads)
    mixed = split_groups(out, heads, keys.shape[1])
    for now, seen in _blocks(q.shape[1], causal):
        shares = _shares(queries[..., now, :], keys[..., seen, :], causal)
        np.matmul(shares.mT, values[..., seen, :], out=mixed[..., now, :])
    return out


def _vjp(grad: Array, out: Array, q: Array, k: Array, v: Array, *, heads: int, causal: bool) -> tuple[Array, Array, Array]:
    """P = softmax(q k^T / sqrt(d)): dV = P^T g, dS = P (g V^T - <g, out>), dQ = dS k / sqrt(d), dK = dS^T q / sqrt(d).

    <g, out> is what softmax's <g V^T, P> comes to (Dao et al., arXiv:2205.14135, B.2): a sum over d instead of all places.
    """
    time, width = q.shape[1], q.shape[2] // heads
    scale = 1 / math.sqrt(width)
    queries, keys, values = _heads_of(q * scale, k, v, heads)
    grads = split_groups(grad, heads, keys.shape[1])
    sums = (grad * out).reshape(-1, width) @ np.ones(width, grad.dtype)
    shift = split_groups(sums.reshape(len(q), time, heads), heads, keys.shape[1]).mT  # (N, groups, heads a group, 1, T)
    of_q, of_k, of_v = (np.empty(x.shape, grad.dtype) for x in (q, k, v))
    d_q, d_k, d_v = _heads_of(of_q, of_k, of_v, heads)
    for now, seen in _blocks(time, causal):
        block, g = queries[..., now, :], grads[..., now, :]
        shares = _shares(block, keys[..., seen, :], causal)
        d_scores = values[..., seen, :] @ g.mT
        d_scores -= shift[..., now]
        d_scores *= shares
        np.matmul(d_scores.mT, keys[..., seen, :], out=d_q[..., now, :])
        for total, product, other in ((d_k, d_scores, block), (d_v, shares, g)):
            part = (product @ other).sum(axis=2, keepdims=True)
            if seen.stop == time:  # the first block, which reaches every key
                total[...] = part
            else:
                total[..., seen, :] += part
    of_q *= scale
    return of_q, of_k, of_v


def _cost(out: Spec, q: Spec, k: Spec, v: Spec, **_: int) -> Cost:
    # q k^T and weights v, counted whole also where a causal mask hides half
    return Cost(2 * out.size * int(q.shape[1]), moved_bytes(out, q, k, v))


# ONNX: the same products on (N, heads, T, d); 0 in a shape keeps that dimension


def onnx_split(x: str, heads: int, width: int, to: str) -> Form:
    """(N, T, heads * width) -> (N, heads, T, width)."""
    return (
        node("Reshape", x, ints(0, 0, heads, width), to=f"{to}_parts"),
        node("Transpose", f"{to}_parts", to=to, perm=[0, 2, 1, 3]),
    )


def onnx_weighted(
    heads: int, width: int, groups: int, keys: str, values: str, mask: str | None, far: str | None = None
) -> Form:
    """The value of the op from ``queries`` (N, heads, T, d), keys and values (N, groups, S, d).

    Args:
        heads, width, groups: of the queries, of a head, of the keys.
        keys, values, mask: names; the mask is true where a query may see a place.
        far: name of what is true for the places that ``queries_far`` meet instead of ``queries``; None for none.
    """
    form: Form = ()
    if groups != heads:
        form += (*_onnx_repeated(keys, heads, width, groups), *_onnx_repeated(values, heads, width, groups))
        keys, values = f"{keys}_each", f"{values}_each"
    form += (
        node("Mul", "queries", np.array(1 / math.sqrt(width), np.float32), to="scaled"),
        node("Transpose", keys, to="keys_t", perm=[0, 1, 3, 2]),
        node("MatMul", "scaled", "keys_t", to="scores" if far is None else "scores_near"),
    )
    if far is not None:
        form += (
            node("Mul", "queries_far", np.array(1 / math.sqrt(width), np.float32), to="scaled_far"),
            node("MatMul", "scaled_far", "keys_t", to="scores_far"),
            node("Where", far, "scores_far", "scores_near", to="scores"),
        )
    if mask is not None:
        form += (node("Where", mask, "scores", np.array(-np.inf, np.float32), to="seen"),)
    return (
        *form,
        node("Softmax", "scores" if mask is None else "seen", to="shares", axis=-1),
        node("MatMul", "shares", values, to="mixed"),
        node("Transpose", "mixed", to="joined", perm=[0, 2, 1, 3]),
        node("Reshape", "joined", ints(0, 0, heads * width)),
    )


def _onnx_repeated(x: str, heads: int, width: int, groups: int) -> Form:
    """A head of keys for each of the queries': (N, groups, S, d) -> (N, heads, S, d), by repeating it along the places."""
    share = heads // groups
    return (
        node("Concat", *[x] * share, to=f"{x}_again", axis=2),  # (N, groups, share * S, d)
        node("Reshape", f"{x}_again", ints(0, heads, -1, width), to=f"{x}_each"),
    )


def _onnx_attention(q: Spec, k: Spec, _v: Spec, *, heads: int, causal: bool) -> Form:
    width = int(q.shape[2]) // heads
    groups = int(k.shape[2]) // width
    form = (
        *onnx_split("q", heads, width, "queries"),
        *onnx_split("k", groups, width, "keys"),
        *onnx_split("v", groups, width, "values"),
    )
    if causal:
        form += (
            *counted("q", 1, "time"),
            node("Unsqueeze", "time", ints(1), to="now"),
            node("LessOrEqual", "time", "now", to="mask"),  # (T, T)
        )
    return form + onnx_weighted(heads, width, groups, "keys", "values", "mask" if causal else None)


ATTENTION = OpDef("attention", ("q", "k", "v"), _infer, _forward, _vjp, _cost, _onnx_attention)
