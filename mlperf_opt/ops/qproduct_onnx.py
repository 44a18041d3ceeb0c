"""The ONNX form of products on codes (`qproduct.py`): QDQ where scales are known, integer operators where they are found
while running.

QDQ is DequantizeLinear before and QuantizeLinear behind a float operator. An engine fuses the three into one integer product
with the arithmetic written in `quantized.py`; another may compute them one by one, which differs by float32 rounding alone.
ONNX has no scale per row (only one for all, or along one axis), so dynamic scales are written out in integer operators.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlperf_opt.ops.activation import onnx_activated
from mlperf_opt.ops.base import Spec
from mlperf_opt.ops.conv import conv_attributes
from mlperf_opt.ops.onnx_form import OUT, Form, OnnxNode, cast, ints, node, then_add

_MIDDLE = 128  # the zero point that makes uint8 of int8


def onnx_qlinear(
    x: Spec,
    x_scale: Spec,
    x_zero: Spec,
    _weight: Spec,
    w_scale: Spec,
    bias: Spec | None,
    y_scale: Spec | None,
    _y_zero: Spec | None,
    *,
    activation: str = "",
) -> Form:
    """Return the form of qlinear.

    With scales per row: x @ w.T - zero * sum(w), because MatMulInteger takes one zero point for all rows in practice.
    """
    if x_scale.shape == () == x_zero.shape:
        if len(x.shape) == 2:  # Gemm takes matrices only; an engine adds its int32 bias before the scale, as qlinear does
            return onnx_activated(_qdq("Gemm", "weight", w_scale, bias, y_scale, {"transB": 1}), activation)
        return onnx_activated(_qdq("MatMul", "weight.T", w_scale, bias, y_scale, {}), activation)
    product = (
        node("MatMulInteger", "x", "weight.T", to="raw"),
        cast("weight.T", "int32", to="wide"),
        node("ReduceSum", "wide", ints(0), to="sums", keepdims=0),  # (M,)
    )
    return onnx_activated(product + _scaled(w_scale, bias, y_scale, places=0), activation)


def onnx_qconv2d(
    x: Spec,
    x_scale: Spec,
    x_zero: Spec,
    weight: Spec,
    w_scale: Spec,
    bias: Spec | None,
    y_scale: Spec | None,
    _y_zero: Spec | None,
    *,
    stride: int,
    padding: int,
    activation: str = "",
) -> Form:
    """Return the form of qconv2d.

    With scales per sample: conv(x, w) - zero * conv(1, w); padding both with codes of 0 is padding with real zeros.
    """
    attributes = conv_attributes(weight, stride, padding)
    if x_scale.shape == () == x_zero.shape:
        return onnx_activated(_qdq("Conv", "weight", w_scale, bias, y_scale, attributes), activation)
    ones = np.ones((1, *(int(d) for d in x.shape[1:])), np.uint8)
    zero, middle = np.uint8(0), np.uint8(_MIDDLE)
    product = (
        # as uint8 around 128: onnxruntime 1.20 has no ConvInteger on int8 weights (and crashes without x's zero point)
        cast("weight", "int32", to="wide"),
        node("Add", "wide", np.int32(_MIDDLE), to="raised"),
        cast("raised", "uint8", to="filters"),
        node("ConvInteger", "x", "filters", zero, middle, to="raw", **attributes),
        node("ConvInteger", ones, "filters", zero, middle, to="sums", **attributes),  # (1, M, H', W')
    )
    return onnx_activated(product + _scaled(w_scale, bias, y_scale, places=2), activation)


def _qdq(kind: str, weight: str, w_scale: Spec, bias: Spec | None, y_scale: Spec | None, attributes: dict[str, Any]) -> Form:
    """DequantizeLinear on each argument, the float operator ``kind``, QuantizeLinear on its value."""
    channels = bool(w_scale.shape)
    axis = {"axis": 1 if weight == "weight.T" else 0} if channels else {}
    # they could be left out, being 0, but onnxruntime fuses no Gemm without them
    w_zeros = np.zeros(tuple(map(int, w_scale.shape)), np.int8)
    form = (
        node("DequantizeLinear", "x", "x_scale", "x_zero", to="real_x"),
        node("DequantizeLinear", weight, "w_scale", w_zeros, to="real_w", **axis),
    )
    term = None
    if bias is not None and bias.dtype == "int32":
        term, axis = "real_bias", {"axis": 0} if channels else {}
        form += (
            node("Mul", "x_scale", "w_scale", to="bias_scale"),
            node("DequantizeLinear", "bias", "bias_scale", to=term, **axis),
        )
    elif bias is not None:
        term = "bias"
    if term == "real_bias" and kind != "MatMul":
        product, term = node(kind, "real_x", "real_w", term, **attributes), None
    else:
        product = node(kind, "real_x", "real_w", **attributes)
    if term is not None and kind == "Conv":
        form += (node("Unsqueeze", term, ints(1, 2), to="column"),)  # (M, 1, 1)
        term = "column"
    return form + _on_grid(then_add(product, term), y_scale)


def _scaled(w_scale: Spec, bias: Spec | None, y_scale: Spec | None, places: int) -> Form:
    """The value of the op from the products of codes ``raw`` and those of the weight alone, ``sums``, both int32.

    Args:
        w_scale: scales of the weight, () or (M,).
        bias: int32 or float32 (M,), or none.
        y_scale: of the output's codes, None for a float32 output.
        places: axes behind that of the M outputs.
    """
    axes = ints(*range(1, 1 + places))

    def along(name: str, spec: Spec) -> tuple[Form, str]:
        if not places or not spec.shape:
            return (), name
        return (node("Unsqueeze", name, axes, to=f"{name}_column"),), f"{name}_column"

    total = "centred"
    form: Form = (
        cast("x_zero", "int32", to="zero"),
        node("Mul", "zero", "sums", to="offset"),
        node("Sub", "raw", "offset", to=total),
    )
    term = None
    if bias is not None:
        nodes, term = along("bias", bias)
        form += nodes
        if bias.dtype == "int32":
            form += (node("Add", total, term, to="total"),)
            total, term = "total", None
    nodes, scales = along("w_scale", w_scale)
    form += (*nodes, node("Mul", "x_scale", scales, to="scale"), cast(total, "float32", to="sum"))
    return form + _on_grid(then_add(node("Mul", "sum", "scale"), term), y_scale)


def _on_grid(form: Form, y_scale: Spec | None) -> Form:
    """Put the value of ``form`` on the output's grid, where there is one."""
    if y_scale is None:
        return form
    *before, last = form
    assert last.output == OUT
    real = OnnxNode(last.kind, last.inputs, "real", last.attributes)
    return (*before, real, node("QuantizeLinear", "real", "y_scale", "y_zero"))
