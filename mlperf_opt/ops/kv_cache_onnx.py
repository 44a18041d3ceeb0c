"""The ONNX forms of the ops of `kv_cache.py`: the same caches and masks, in ONNX's operators."""

from __future__ import annotations

import numpy as np

from mlperf_opt.ops.attention import onnx_split, onnx_weighted
from mlperf_opt.ops.base import Spec
from mlperf_opt.ops.onnx_form import Form, cast, counted, ints, length, node

_ZERO, _ONE = np.int64(0), np.int64(1)


def onnx_scale(x: Spec, *, heads: int) -> Form:
    """head_scale."""
    return (
        node("Reshape", "x", ints(0, 0, heads, int(x.shape[2]) // heads), to="heads"),
        node("Abs", "heads", to="sizes"),
        node("ReduceMax", "sizes", ints(3), to="peaks", keepdims=0),
        node("Div", "peaks", np.float32(127), to="steps"),
        node("Max", "steps", np.finfo(np.float32).tiny, to="some"),
        node("Greater", "peaks", np.float32(0), to="any"),
        node("Where", "any", "some", np.float32(1)),
    )


def onnx_write(
    cache: Spec,
    new: Spec,
    _position: Spec,
    _lengths: Spec,
    scale: Spec | None = None,
    *,
    sinks: int = 0,
    window: int = 0,
) -> Form:
    """Every place of the cache takes its own token of ``new``, if it has one: place p of row n token p - position[n].

    A choice instead of a scatter: what lies beyond a row's length or the capacity is never addressed. In a ring the place
    takes the first token that comes round to it.
    """
    heads, width = int(cache.shape[1]), int(cache.shape[3])
    form: Form = (
        *counted("cache", 2, "place"),
        node("Unsqueeze", "position", ints(1), to="start"),
        node("Unsqueeze", "lengths", ints(1), to="count"),
        node("Sub", "place", "start", to="ahead" if window else "token"),  # (N, L)
    )
    if window:
        form += (
            node("Sub", "place_end", np.int64(sinks), to="round"),
            node("Mod", "ahead", "round", to="turned"),
            node("Less", "ahead", _ZERO, to="passed"),
            node("GreaterOrEqual", "place", np.int64(sinks), to="moves"),
            node("And", "passed", "moves", to="again"),
            node("Where", "again", "turned", "ahead", to="token"),
        )
    stored = _onnx_stored(cache, heads, width, scale)
    form += (
        node("GreaterOrEqual", "token", _ZERO, to="begun"),
        node("Less", "token", "count", to="within"),
        node("And", "begun", "within", to="written"),
        node("Unsqueeze", "written", ints(1, 3), to="chosen"),  # (N, 1, L, 1)
        *length("new", 1, "time"),
        node("Sub", "time", _ONE, to="last"),
        node("Max", "token", _ZERO, to="not_before"),
        node("Min", "not_before", "last", to="legal"),
        node("Unsqueeze", "legal", ints(2), to="index"),
        *stored,
        node("GatherND", "stored" if stored else "new", "index", to="spread", batch_dims=1),  # (N, L, D)
        *onnx_split("spread", heads, width, "candidates"),
        node("Where", "chosen", "candidates", "cache"),
    )
    return form


def _onnx_stored(cache: Spec, heads: int, width: int, scale: Spec | None) -> Form:
    """``stored``: ``new`` as the cache holds it; nothing where it is that already."""
    if scale is not None:
        grid: Form = (node("Unsqueeze", "scale", ints(3), to="grid"),) if len(scale.shape) == 3 else ()
        return (
            *grid,
            node("Reshape", "new", ints(0, 0, heads, width), to="vectors"),
            node("Div", "vectors", "grid" if grid else "scale", to="steps"),
            node("Round", "steps", to="whole"),
            node("Clip", "whole", np.float32(-127), np.float32(127), to="codes"),
            node("Reshape", "codes", ints(0, 0, heads * width), to="flat"),
            cast("flat", "int8", to="stored"),
        )
    if cache.dtype == "float16":
        limit = np.float32(np.finfo(np.float16).max)
        return (node("Clip", "new", -limit, limit, to="limited"), cast("limited", "float16", to="stored"))
    return ()


def onnx_attention(
    _q: Spec,
    keys: Spec,
    _values: Spec,
    _position: Spec,
    key_scale: Spec | None = None,
    _value_scale: Spec | None = None,
    q_sinks: Spec | None = None,
    *,
    heads: int,
    sinks: int = 0,
    window: int = 0,
) -> Form:
    """cached_attention: codes become real values first."""
    groups, width = int(keys.shape[1]), int(keys.shape[3])
    k, v = "keys", "values"
    form: Form = ()
    if keys.dtype != "float32":
        form += (cast("keys", "float32", to="keys_real"), cast("values", "float32", to="values_real"))
        k, v = "keys_real", "values_real"
    if key_scale is not None:
        form += (
            node("Unsqueeze", "key_scale", ints(1), to="per_channel"),  # (groups, 1, d)
            node("Mul", k, "per_channel", to="keys_scaled"),
            node("Mul", v, "value_scale", to="values_scaled"),
        )
        k, v = "keys_scaled", "values_scaled"
    form += (
        *onnx_split("q", heads, width, "queries"),
        *counted("q", 1, "time"),
        *counted("keys", 2, "place"),
        node("Unsqueeze", "position", ints(1), to="start"),
        node("Add", "start", "time", to="own"),  # (N, T): the place of each query
        node("Unsqueeze", "own", ints(1, 3), to="now"),  # (N, 1, T, 1)
        node("LessOrEqual", "place", "now", to="mask" if not window else "so_far"),  # (N, 1, T, L)
    )
    if window:
        form += (
            node("Sub", "now", np.int64(window), to="begin"),
            node("Greater", "place", "begin", to="near"),
            node("Less", "place", np.int64(sinks), to="sink"),
            node("GreaterOrEqual", "now", "place_end", to="round"),
            node("Or", "near", "sink", to="near_or_sink"),
            node("Or", "near_or_sink", "round", to="kept"),
            node("And", "so_far", "kept", to="mask"),
        )
    far = None
    if q_sinks is not None:
        form += (*onnx_split("q_sinks", heads, width, "queries_far"), node("Less", "place", np.int64(sinks), to="is_sink"))
        far = "is_sink"
    return form + onnx_weighted(heads, width, groups, k, v, "mask", far)
