"""Quantized arithmetic, explicit: codes, scales and zero points are arrays that the graph shows.

Here: the grid, quantize and dequantize, the scales of a row. The products on codes are in `qproduct.py`.

    real = (code - zero) * scale            activations: uint8, affine; weights: int8, symmetric (zero = 0)
    acc  = sum_k (x - x_zero) * w + bias    int32; bias is int32 at x_scale * w_scale
    y    = float32(acc) * (x_scale * w_scale)                              without an output scale: float32
    y    = clip(rint(float32(acc) * m) + y_zero, 0, 255), m = x_scale * w_scale / y_scale    with one: uint8

A float32 bias instead of an int32 one is added last; it goes with dynamic scales, which are not known before the call.

Every step is one float32 or integer operation (rint rounds half to even), so that another runtime can be equal bit for bit
(Jacob et al., arXiv:1712.05877, with a float32 multiplier in place of the fixed-point one).

Scales are () or (M,) for weights, () or per row (..., 1) for activations. Gradients are straight-through (Bengio,
arXiv:1308.3432): the gradient of a code is that of the real value it stands for, zero where the code is saturated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlperf_opt.ops.base import Array, OpDef, Spec, expect, expect_float, is_whole, no_macs
from mlperf_opt.ops.onnx_form import OUT, Form, cast, ints, node

CODE_MAX = 255  # activations are uint8
_SMALLEST = np.float32(np.finfo(np.float32).tiny)  # a scale below the normal range would divide to infinity


def affine_range(low: Array, high: Array) -> tuple[Array, Array]:
    """Return (scale float32, zero point uint8) of the affine grid over [low, high], widened to hold 0 exactly.

    Works for any float32 range within +-3.3e38 (further out the grid's ends would be no float32): a range that excludes
    0 is widened, the width is taken in float64 because it may exceed float32. A range of nothing but 0 gets the scale 1:
    with a tiny one, the int32 bias behind it (at x_scale * w_scale) would saturate at next to nothing.
    """
    low = np.minimum(np.asarray(low, np.float64), 0)
    high = np.maximum(np.asarray(high, np.float64), 0)
    scale = np.maximum(((high - low) / CODE_MAX).astype(np.float32), _SMALLEST)
    scale = np.where(high > low, scale, np.float32(1))
    zero = np.clip(np.rint(-low / scale), 0, CODE_MAX).astype(np.uint8)
    return scale, zero


def saturate(rounded: Array, zero: Array | int) -> Array:
    """Clip float codes to uint8. The first clip only keeps the integer conversion defined; the second decides."""
    near = np.clip(rounded, -2 * CODE_MAX, 2 * CODE_MAX).astype(np.int32)
    return np.clip(near + np.asarray(zero, np.int32), 0, CODE_MAX).astype(np.uint8)


def check_codes(spec: Spec, dtype: str, what: str) -> None:
    """Raise `GraphError` unless ``spec`` holds codes of ``dtype``."""
    expect(spec.dtype == dtype, f"{what} must be {dtype} codes, got {spec}")


def check_grid(what: str, x: Spec, scale: Spec, zero: Spec | None) -> None:
    """Raise `GraphError` unless scale and zero point are one for all of ``x``, or one for each row: (N, 1, ..., 1)."""
    for spec, dtype in ((scale, "float32"), (zero, "uint8")):
        if spec is None:
            continue
        expect(spec.dtype == dtype, f"{what}: scale must be float32 and zero point uint8, got {spec}")
        per_row = len(spec.shape) == len(x.shape) and spec.shape[-1:] == (1,)
        fits = spec.shape == () or (per_row and all(s in (1, d) for s, d in zip(spec.shape, x.shape, strict=True)))
        expect(fits, f"{what}: scale or zero point {spec} does not fit {x}")


# quantize, dequantize


def _quantize_infer(x: Spec, scale: Spec, zero: Spec) -> Spec:
    check_grid("quantize", x, scale, zero)
    expect(x.dtype == "float32", f"quantize: x must be float32, got {x}")
    return Spec(x.shape, "uint8")


def _quantize(x: Array, scale: Array, zero: Array) -> Array:
    # Divide rather than multiply by 1/scale: the inverse of a tiny scale is not a float32.
    with np.errstate(over="ignore"):  # a value far outside the range saturates, as it should
        return saturate(np.rint(x / scale), zero)


def _quantize_vjp(grad: Array, out: Array, _x: Array, _scale: Array, _zero: Array) -> tuple[Array | None, ...]:
    return grad * ((out > 0) & (out < CODE_MAX)), None, None


def _dequantize_infer(codes: Spec, scale: Spec, zero: Spec | None) -> Spec:
    expect(codes.dtype in ("uint8", "int8"), f"dequantize: codes must be uint8 or int8, got {codes}")
    check_grid("dequantize", codes, scale, zero)
    return Spec(codes.shape, "float32")


def _dequantize(codes: Array, scale: Array, zero: Array | None) -> Array:
    shifted = codes.astype(np.int32) - (0 if zero is None else np.asarray(zero, np.int32))
    return shifted.astype(np.float32) * scale


# dynamic activation scales: one per row, from the row's own range


def _row_infer(dtype: str) -> Callable[..., Spec]:
    def infer(x: Spec, *, axes: int) -> Spec:
        expect_float("row_scale: x", x)
        expect(is_whole(axes, 1) and axes < len(x.shape), f"row_scale: axes={axes} must leave a leading axis of {x}")
        return Spec((*x.shape[:-axes], *([1] * axes)), dtype)

    return infer


def _row_range(x: Array, axes: int) -> tuple[Array, Array]:
    trailing = tuple(range(-axes, 0))
    return affine_range(x.min(axis=trailing, keepdims=True), x.max(axis=trailing, keepdims=True))


# ONNX: one scale for all is an operator of its own; a scale per row is written out


def _quantize_onnx(_x: Spec, scale: Spec, zero: Spec) -> Form:
    if scale.shape == () == zero.shape:
        return (node("QuantizeLinear", "x", "scale", "zero"),)
    return (
        node("Div", "x", "scale", to="steps"),
        node("Round", "steps", to="rounded"),
        # the first clip keeps the sum exact in float32, the second decides, as in `saturate`
        node("Clip", "rounded", np.float32(-2 * CODE_MAX), np.float32(2 * CODE_MAX), to="near"),
        cast("zero", "float32", to="shift"),
        node("Add", "near", "shift", to="codes"),
        node("Clip", "codes", np.float32(0), np.float32(CODE_MAX), to="legal"),
        cast("legal", "uint8"),
    )


def _dequantize_onnx(codes: Spec, scale: Spec, zero: Spec | None) -> Form:
    if scale.shape == () and (zero is None or (zero.shape == () and zero.dtype == codes.dtype)):
        return (node("DequantizeLinear", "codes", "scale", *([] if zero is None else ["zero"])),)
    form = (cast("codes", "float32", to="wide"),)  # differences of codes are exact in float32
    if zero is not None:
        form += (cast("zero", "float32", to="shift"), node("Sub", "wide", "shift", to="steps"))
    return (*form, node("Mul", "wide" if zero is None else "steps", "scale"))


def _row_scale_form(axes: int, to: str) -> Form:
    """`affine_range` in float64, operator by operator; leaves the range's lower end in ``low``."""
    trailing, nothing = ints(*range(-axes, 0)), np.float64(0)
    return (
        node("ReduceMin", "x", trailing, to="least", keepdims=1),
        node("ReduceMax", "x", trailing, to="most", keepdims=1),
        cast("least", "float64", to="wide_least"),
        cast("most", "float64", to="wide_most"),
        node("Min", "wide_least", nothing, to="low"),
        node("Max", "wide_most", nothing, to="high"),
        node("Sub", "high", "low", to="width"),
        node("Div", "width", np.float64(CODE_MAX), to="wide_step"),
        cast("wide_step", "float32", to="step"),
        node("Max", "step", _SMALLEST, to="normal"),
        node("Greater", "width", nothing, to="spread"),
        node("Where", "spread", "normal", np.float32(1), to=to),
    )


def _row_scale_onnx(_x: Spec, *, axes: int) -> Form:
    return _row_scale_form(axes, OUT)


def _row_zero_onnx(_x: Spec, *, axes: int) -> Form:
    return (
        *_row_scale_form(axes, "scale"),
        cast("scale", "float64", to="wide_scale"),
        node("Neg", "low", to="below"),
        node("Div", "below", "wide_scale", to="steps"),
        node("Round", "steps", to="rounded"),
        node("Clip", "rounded", np.float64(0), np.float64(CODE_MAX), to="legal"),
        cast("legal", "uint8"),
    )


QUANTIZE = OpDef("quantize", ("x", "scale", "zero"), _quantize_infer, _quantize, _quantize_vjp, no_macs, _quantize_onnx)
DEQUANTIZE = OpDef(
    "dequantize",
    ("codes", "scale", "zero?"),
    _dequantize_infer,
    _dequantize,
    lambda grad, _out, _codes, _scale, _zero: (grad, None, None),
    no_macs,
    _dequantize_onnx,
)
# The scale of a row is treated as a constant of the gradient, so these two never receive one.
ROW_SCALE = OpDef(
    "row_scale", ("x",), _row_infer("float32"), lambda x, axes: _row_range(x, axes)[0], None, no_macs, _row_scale_onnx
)
ROW_ZERO = OpDef(
    "row_zero", ("x",), _row_infer("uint8"), lambda x, axes: _row_range(x, axes)[1], None, no_macs, _row_zero_onnx
)
