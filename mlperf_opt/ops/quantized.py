"""Quantized arithmetic, explicit: codes, scales and zero points are arrays that the graph shows.

    real = (code - zero) * scale            activations: uint8, affine; weights: int8, symmetric (zero = 0)
    acc  = sum_k (x - x_zero) * w + bias    int32; bias is int32 at x_scale * w_scale
    y    = float32(acc) * (x_scale * w_scale)                              without an output scale: float32
    y    = clip(rint(float32(acc) * m) + y_zero, 0, 255), m = x_scale * w_scale / y_scale    with one: uint8

A float32 bias instead of an int32 one is added last; it goes with dynamic scales, which are not known before the call.

Every step is one float32 or integer operation (rint rounds half to even), so that another runtime can be equal bit for bit
(Jacob et al., arXiv:1712.05877, with a float32 multiplier in place of the fixed-point one).

Scales are () or (M,) for weights, () or per row (..., 1) for activations. Gradients are straight-through (Bengio, arXiv:1308.3432):
the gradient of a code is that of the real value it stands for, zero where the code is saturated.
"""

from __future__ import annotations

import math
from typing import Callable

import numpy as np

from mlperf_opt.ops.base import Array, Cost, OpDef, Spec, expect, moved_bytes, no_macs
from mlperf_opt.ops.conv import conv2d_cost, infer_conv2d, patches
from mlperf_opt.ops.conv import CONV2D
from mlperf_opt.ops.embedding import EMBEDDING, embedding_cost, infer_embedding

CODE_MAX = 255  # activations are uint8
_SMALLEST = np.float32(np.finfo(np.float32).tiny)  # a scale below the normal range would divide to infinity
_FLOAT32_EXACT_K = 518  # 255 * 127 * 518 < 2^24: up to here float32 holds every partial sum exactly
MAX_K = 2**31 // (CODE_MAX * 127)  # beyond, int32 accumulators could wrap


def affine_range(low: Array, high: Array) -> tuple[Array, Array]:
    """Return (scale float32, zero point uint8) of the affine grid over [low, high], widened to hold 0 exactly.

    Works for any finite float32 range: a range that excludes 0 is widened, a range of zero width gets the smallest scale,
    the width is taken in float64 because it may exceed float32.
    """
    low = np.minimum(np.asarray(low, np.float64), 0)
    high = np.maximum(np.asarray(high, np.float64), 0)
    scale = np.maximum(((high - low) / CODE_MAX).astype(np.float32), _SMALLEST)
    zero = np.clip(np.rint(-low / scale), 0, CODE_MAX).astype(np.uint8)
    return scale, zero


def _saturate(rounded: Array, zero: Array | int) -> Array:
    """Clip float codes to uint8. The first clip only keeps the integer conversion defined; the second decides."""
    near = np.clip(rounded, -2 * CODE_MAX, 2 * CODE_MAX).astype(np.int32)
    return np.clip(near + np.asarray(zero, np.int32), 0, CODE_MAX).astype(np.uint8)


def _check_codes(spec: Spec, dtype: str, what: str) -> None:
    expect(spec.dtype == dtype, f"{what} must be {dtype} codes, got {spec}")


# quantize, dequantize


def _quantize_infer(x: Spec, scale: Spec, zero: Spec) -> Spec:
    _check_codes(zero, "uint8", "quantize: zero")
    expect(x.dtype == "float32", f"quantize: x must be float32, got {x}")
    return Spec(x.shape, "uint8")


def _quantize(x: Array, scale: Array, zero: Array) -> Array:
    # Divide rather than multiply by 1/scale: the inverse of a tiny scale is not a float32.
    with np.errstate(over="ignore"):  # a value far outside the range saturates, as it should
        return _saturate(np.rint(x / scale), zero)


def _quantize_vjp(grad: Array, out: Array, _x: Array, _scale: Array, _zero: Array) -> tuple[Array | None, ...]:
    return grad * ((out > 0) & (out < CODE_MAX)), None, None


def _dequantize_infer(codes: Spec, scale: Spec, zero: Spec | None) -> Spec:
    expect(codes.dtype in ("uint8", "int8"), f"dequantize: codes must be uint8 or int8, got {codes}")
    return Spec(codes.shape, "float32")


def _dequantize(codes: Array, scale: Array, zero: Array | None) -> Array:
    shifted = codes.astype(np.int32) - (0 if zero is None else np.asarray(zero, np.int32))
    return shifted.astype(np.float32) * scale


# dynamic activation scales: one per row, from the row's own range


def _row_infer(dtype: str) -> Callable[..., Spec]:
    def infer(x: Spec, *, axes: int) -> Spec:
        expect(1 <= axes < len(x.shape), f"row_scale: axes={axes} must leave a leading axis of {x}")
        return Spec((*x.shape[:-axes], *([1] * axes)), dtype)

    return infer


def _row_range(x: Array, axes: int) -> tuple[Array, Array]:
    trailing = tuple(range(-axes, 0))
    return affine_range(x.min(axis=trailing, keepdims=True), x.max(axis=trailing, keepdims=True))


# qlinear


def _check_product(name: str, x: Spec, weight: Spec, k: int, scales: Spec, bias: Spec | None, y_scale: Spec | None) -> None:
    _check_codes(x, "uint8", f"{name}: x")
    _check_codes(weight, "int8", f"{name}: weight")
    expect(k <= MAX_K, f"{name}: {k} products may overflow an int32 accumulator (limit {MAX_K})")
    expect(scales.shape in ((), weight.shape[:1]), f"{name}: weight scale {scales} must be () or ({weight.shape[0]},)")
    if bias is not None:
        kinds = ("int32", "float32") if y_scale is None else ("int32",)
        expect(bias.dtype in kinds, f"{name}: bias must be {' or '.join(kinds)}, got {bias}")


def _out_dtype(y_scale: Spec | None) -> str:
    return "float32" if y_scale is None else "uint8"


def _qlinear_infer(
    x: Spec,
    x_scale: Spec,
    x_zero: Spec,
    weight: Spec,
    w_scale: Spec,
    bias: Spec | None,
    y_scale: Spec | None,
    y_zero: Spec | None,
) -> Spec:
    expect(len(weight.shape) == 2 and x.shape[-1] == weight.shape[1], f"qlinear: x {x} and weight {weight} do not fit")
    _check_product("qlinear", x, weight, int(weight.shape[1]), w_scale, bias, y_scale)
    return Spec((*x.shape[:-1], weight.shape[0]), _out_dtype(y_scale))


def _product(
    rows: Array,
    x_scale: Array,
    weight: Array,
    w_scale: Array,
    bias: Array | None,
    y_scale: Array | None,
    y_zero: Array | None,
) -> Array:
    """Centred codes (..., K) times weight codes (M, K) -> float32 (..., M), or uint8 codes where there is an output scale."""
    exact = np.float32 if rows.shape[-1] <= _FLOAT32_EXACT_K else np.float64  # BLAS in a float that holds every sum
    acc = (rows.astype(exact) @ weight.T.astype(exact)).astype(np.int32)
    integer_bias = bias is not None and bias.dtype == np.int32
    if integer_bias:
        acc += bias
    scale = x_scale * w_scale  # float32
    if y_scale is not None:
        assert y_zero is not None
        return _saturate(np.rint(acc.astype(np.float32) * (scale / y_scale)), y_zero)
    y = acc.astype(np.float32) * scale
    return y if bias is None or integer_bias else y + bias


def _centred(x: Array, zero: Array) -> Array:
    return x.astype(np.int32) - zero.astype(np.int32)


def _qlinear(
    x: Array,
    x_scale: Array,
    x_zero: Array,
    weight: Array,
    w_scale: Array,
    bias: Array | None,
    y_scale: Array | None,
    y_zero: Array | None,
) -> Array:
    return _product(_centred(x, x_zero), x_scale, weight, w_scale, bias, y_scale, y_zero)


def _real(weight: Array, w_scale: Array) -> Array:
    column = w_scale.reshape(-1, *([1] * (weight.ndim - 1))) if w_scale.ndim else w_scale
    return weight.astype(np.float32) * column


def _through(grad: Array, out: Array, y_scale: Array | None) -> Array:
    """Straight-through: stop the gradient where an output code is saturated. A relu folded into the grid
    (zero point 0) saturates at code 0, which is exactly where its own gradient is zero."""
    return grad if y_scale is None else grad * ((out > 0) & (out < CODE_MAX))


def _qlinear_vjp(
    grad: Array,
    out: Array,
    x: Array,
    x_scale: Array,
    x_zero: Array,
    weight: Array,
    w_scale: Array,
    bias: Array | None,
    y_scale: Array | None,
    y_zero: Array | None,
) -> tuple[Array | None, ...]:
    grad = _through(grad, out, y_scale)
    rows = grad.reshape(-1, grad.shape[-1])
    real_x = _centred(x, x_zero).astype(np.float32) * x_scale
    d_weight = rows.T @ real_x.reshape(-1, x.shape[-1])
    d_bias = None if bias is None else rows.sum(axis=0)
    return grad @ _real(weight, w_scale), None, None, d_weight, None, d_bias, None, None


def _qlinear_cost(out: Spec, x: Spec, x_scale: Spec, x_zero: Spec, weight: Spec, *others: Spec | None) -> Cost:
    return Cost(out.size * int(weight.shape[1]), moved_bytes(out, x, x_scale, x_zero, weight, *others))


# qconv2d


def _qconv_infer(
    x: Spec,
    x_scale: Spec,
    x_zero: Spec,
    weight: Spec,
    w_scale: Spec,
    bias: Spec | None,
    y_scale: Spec | None,
    y_zero: Spec | None,
    *,
    stride: int,
    padding: int,
) -> Spec:
    out = infer_conv2d(x, weight, bias, stride=stride, padding=padding)
    _check_product("qconv2d", x, weight, math.prod(int(d) for d in weight.shape[1:]), w_scale, bias, y_scale)
    return Spec(out.shape, _out_dtype(y_scale))


def _qconv(
    x: Array,
    x_scale: Array,
    x_zero: Array,
    weight: Array,
    w_scale: Array,
    bias: Array | None,
    y_scale: Array | None,
    y_zero: Array | None,
    *,
    stride: int,
    padding: int,
) -> Array:
    m, _, kh, kw = weight.shape
    # Centred first, then padded with 0: a pixel outside the image is real zero, whatever the zero point.
    rows = patches(_centred(x, x_zero), kh, kw, stride, padding)
    return _product(rows, x_scale, weight.reshape(m, -1), w_scale, bias, y_scale, y_zero).transpose(0, 3, 1, 2)


def _qconv_vjp(
    grad: Array,
    out: Array,
    x: Array,
    x_scale: Array,
    x_zero: Array,
    weight: Array,
    w_scale: Array,
    bias: Array | None,
    y_scale: Array | None,
    y_zero: Array | None,
    *,
    stride: int,
    padding: int,
) -> tuple[Array | None, ...]:
    real_x = _centred(x, x_zero).astype(np.float32) * x_scale
    assert CONV2D.vjp is not None
    d_x, d_weight, d_bias = CONV2D.vjp(
        _through(grad, out, y_scale), out, real_x, _real(weight, w_scale), bias, stride=stride, padding=padding
    )
    return d_x, None, None, d_weight, None, d_bias, None, None


def _qconv_cost(out: Spec, x: Spec, x_scale: Spec, x_zero: Spec, weight: Spec, *others: Spec | None, **_: int) -> Cost:
    return conv2d_cost(out, x, weight, x_scale, x_zero, *others)


# qembedding


def _qembedding_infer(tokens: Spec, table: Spec, scale: Spec) -> Spec:
    _check_codes(table, "int8", "qembedding: table")
    expect(scale.shape in ((), table.shape[:1]), f"qembedding: scale {scale} must be () or ({table.shape[0]},)")
    return infer_embedding(tokens, table)


def _qembedding(tokens: Array, table: Array, scale: Array) -> Array:
    codes = EMBEDDING.forward(tokens, table)
    return codes.astype(np.float32) * (scale[tokens][..., None] if scale.ndim else scale)


def _qembedding_vjp(grad: Array, out: Array, tokens: Array, table: Array, _scale: Array) -> tuple[Array | None, ...]:
    assert EMBEDDING.vjp is not None
    return *EMBEDDING.vjp(grad, out, tokens, table), None


_PRODUCT_ARGUMENTS = ("x", "x_scale", "x_zero", "weight", "w_scale", "bias?", "y_scale?", "y_zero?")

QUANTIZE = OpDef("quantize", ("x", "scale", "zero"), _quantize_infer, _quantize, _quantize_vjp, no_macs, "QuantizeLinear")
DEQUANTIZE = OpDef(
    "dequantize",
    ("codes", "scale", "zero?"),
    _dequantize_infer,
    _dequantize,
    lambda grad, _out, _codes, _scale, _zero: (grad, None, None),
    no_macs,
    "DequantizeLinear",
)
# The scale of a row is treated as a constant of the gradient, so these two never receive one.
ROW_SCALE = OpDef(
    "row_scale", ("x",), _row_infer("float32"), lambda x, axes: _row_range(x, axes)[0], None, no_macs, "QDQ:dynamic"
)
ROW_ZERO = OpDef(
    "row_zero", ("x",), _row_infer("uint8"), lambda x, axes: _row_range(x, axes)[1], None, no_macs, "QDQ:dynamic"
)
QLINEAR = OpDef(
    "qlinear",
    _PRODUCT_ARGUMENTS,
    _qlinear_infer,
    _qlinear,
    _qlinear_vjp,
    _qlinear_cost,
    "QDQ:MatMul",
    parameters=("weight", "bias"),
    matrix="weight",
)
QCONV2D = OpDef(
    "qconv2d",
    _PRODUCT_ARGUMENTS,
    _qconv_infer,
    _qconv,
    _qconv_vjp,
    _qconv_cost,
    "QDQ:Conv",
    parameters=("weight", "bias"),
    matrix="weight",
)
QEMBEDDING = OpDef(
    "qembedding",
    ("tokens", "table", "scale"),
    _qembedding_infer,
    _qembedding,
    _qembedding_vjp,
    lambda out, tokens, table, scale: embedding_cost(out, tokens, table),
    "QDQ:Gather",
    parameters=("table",),
    matrix="table",
)
