"""Products on codes: qlinear and qconv2d. The arithmetic is written out in `quantized.py`.

A product without an output scale may have an activation, on its float32 result. One with an output scale has none: there a
relu is a zero point of 0.
"""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.ops.activation import activate, activation_vjp, check_activation
from mlperf_opt.ops.base import Array, Cost, OpDef, Spec, expect, moved_bytes
from mlperf_opt.ops.conv import CONV2D, conv2d_cost, infer_conv2d, product
from mlperf_opt.ops.qproduct_onnx import onnx_qconv2d, onnx_qlinear
from mlperf_opt.ops.quantized import CODE_MAX, check_codes, check_grid, saturate

_FLOAT32_EXACT_K = 518  # 255 * 127 * 518 < 2^24: up to here float32 holds every partial sum exactly
_LARGEST = np.finfo(np.float32).max
MAX_K = 2**31 // (CODE_MAX * 127)  # beyond, int32 accumulators could wrap


# qlinear


def _check_product(
    name: str,
    x: Spec,
    x_scale: Spec,
    x_zero: Spec,
    weight: Spec,
    w_scale: Spec,
    bias: Spec | None,
    y_scale: Spec | None,
    y_zero: Spec | None,
    activation: str,
) -> None:
    check_activation(name, activation)
    expect(activation == "" or y_scale is None, f"{name}: activation={activation} needs a float32 output, not codes")
    check_codes(x, "uint8", f"{name}: x")
    check_codes(weight, "int8", f"{name}: weight")
    check_grid(f"{name}: x", x, x_scale, x_zero)
    k = math.prod(int(d) for d in weight.shape[1:])
    expect(k <= MAX_K, f"{name}: {k} products may overflow an int32 accumulator (limit {MAX_K})")
    expect(w_scale.shape in ((), weight.shape[:1]), f"{name}: weight scale {w_scale} must be () or ({weight.shape[0]},)")
    if bias is not None:
        kinds = ("int32", "float32") if y_scale is None else ("int32",)
        fits = bias.dtype in kinds and bias.shape == weight.shape[:1]
        expect(fits, f"{name}: bias must be {' or '.join(kinds)} ({weight.shape[0]},), got {bias}")
    expect((y_scale is None) == (y_zero is None), f"{name}: y_scale and y_zero go together")
    if y_scale is not None and y_zero is not None:
        expect(y_scale.shape == () == y_zero.shape, f"{name}: y_scale {y_scale} and y_zero {y_zero} must be one number")
        check_grid(f"{name}: y", x, y_scale, y_zero)


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
    *,
    activation: str = "",
) -> Spec:
    expect(
        len(weight.shape) == 2 and len(x.shape) >= 1 and x.shape[-1] == weight.shape[1],
        f"qlinear: x {x} and weight {weight} do not fit",
    )
    _check_product("qlinear", x, x_scale, x_zero, weight, w_scale, bias, y_scale, y_zero, activation)
    return Spec((*x.shape[:-1], weight.shape[0]), _out_dtype(y_scale))


def _exact(k: int) -> type[np.float32] | type[np.float64]:
    """The float in which BLAS holds every sum of ``k`` products of codes exactly."""
    return np.float32 if k <= _FLOAT32_EXACT_K else np.float64


def _rescale(
    acc: Array,
    x_scale: Array,
    w_scale: Array,
    bias: Array | None,
    y_scale: Array | None,
    y_zero: Array | None,
    activation: str,
) -> Array:
    """Sums of products of codes -> float32; uint8 codes if there is an output scale. Scales and bias fit ``acc``."""
    if bias is not None and bias.dtype == np.int32:
        acc += bias
        bias = None
    scale = x_scale * w_scale  # float32
    if y_scale is not None:
        assert y_zero is not None
        with np.errstate(over="ignore"):  # a tiny output scale (a layer that gave only zeros): saturates, as it should
            m = np.minimum(scale / y_scale, _LARGEST)  # finite, so that 0 * m is 0
            return saturate(np.rint(acc.astype(np.float32) * m), y_zero)
    y = acc.astype(np.float32) * scale
    return activate(y if bias is None else y + bias, activation)


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
    *,
    activation: str = "",
) -> Array:
    exact = _exact(weight.shape[1])
    acc = _centred(x, x_zero).astype(exact) @ weight.T.astype(exact)
    return _rescale(acc.astype(np.int32), x_scale, w_scale, bias, y_scale, y_zero, activation)


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
    *,
    activation: str = "",
    input_gradient: bool = True,
) -> tuple[Array | None, ...]:
    def before() -> Array:
        return _qlinear(x, x_scale, x_zero, weight, w_scale, bias, None, None)

    grad = activation_vjp(_through(grad, out, y_scale), out, activation, before)
    rows = grad.reshape(-1, grad.shape[-1])
    real_x = _centred(x, x_zero).astype(np.float32) * x_scale
    d_weight = rows.T @ real_x.reshape(-1, x.shape[-1])
    d_bias = None if bias is None else rows.sum(axis=0)
    d_x = grad @ _real(weight, w_scale) if input_gradient else None
    return d_x, None, None, d_weight, None, d_bias, None, None


def _qlinear_cost(out: Spec, x: Spec, x_scale: Spec, x_zero: Spec, weight: Spec, *others: Spec | None, **_: str) -> Cost:
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
    activation: str = "",
) -> Spec:
    out = infer_conv2d(x, weight, bias, stride=stride, padding=padding)
    whole = all(d == 1 for spec in (x_scale, x_zero) for d in spec.shape[1:])
    expect(whole, f"qconv2d: scale {x_scale} and zero point {x_zero} must be one for all or (N, 1, 1, 1)")
    _check_product("qconv2d", x, x_scale, x_zero, weight, w_scale, bias, y_scale, y_zero, activation)
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
    activation: str = "",
) -> Array:
    exact = _exact(weight[0].size)
    # Centred first, then padded with 0: a pixel outside the image is real zero, whatever the zero point.
    acc = product(_centred(x, x_zero).astype(exact), weight.astype(exact), stride, padding).astype(np.int32)
    columns = None if bias is None else _per_channel(bias)
    return _rescale(acc, x_scale, _per_channel(w_scale), columns, y_scale, y_zero, activation)


def _per_channel(array: Array) -> Array:
    """() or (M,) in front of the axes H and W."""
    return array[:, None, None] if array.ndim else array


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
    activation: str = "",
    input_gradient: bool = True,
) -> tuple[Array | None, ...]:
    def before() -> Array:
        return _qconv(x, x_scale, x_zero, weight, w_scale, bias, None, None, stride=stride, padding=padding)

    grad = activation_vjp(_through(grad, out, y_scale), out, activation, before)
    real_x = _centred(x, x_zero).astype(np.float32) * x_scale
    arrays = (grad, out, real_x, _real(weight, w_scale), bias)
    assert CONV2D.vjp is not None
    d_x, d_weight, d_bias = CONV2D.vjp(*arrays, stride=stride, padding=padding, input_gradient=input_gradient)
    return d_x, None, None, d_weight, None, d_bias, None, None


def _qconv_cost(out: Spec, x: Spec, x_scale: Spec, x_zero: Spec, weight: Spec, *others: Spec | None, **_: int | str) -> Cost:
    return conv2d_cost(out, x, weight, x_scale, x_zero, *others)


_PRODUCT_ARGUMENTS = ("x", "x_scale", "x_zero", "weight", "w_scale", "bias?", "y_scale?", "y_zero?")

QLINEAR = OpDef(
    "qlinear",
    _PRODUCT_ARGUMENTS,
    _qlinear_infer,
    _qlinear,
    _qlinear_vjp,
    _qlinear_cost,
    onnx_qlinear,
    parameters=("weight", "bias"),
    matrix="weight",
    skips_input_gradient=True,
)
QCONV2D = OpDef(
    "qconv2d",
    _PRODUCT_ARGUMENTS,
    _qconv_infer,
    _qconv,
    _qconv_vjp,
    _qconv_cost,
    onnx_qconv2d,
    parameters=("weight", "bias"),
    matrix="weight",
    skips_input_gradient=True,
)
