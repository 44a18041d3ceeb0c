"""layer_norm: (x - mean) / sqrt(variance + eps) * gamma + beta over the last axis (Ba, arXiv:1607.06450)."""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.ops.base import Array, OpDef, Spec, expect, expect_float, no_macs, ones
from mlperf_opt.ops.onnx_form import Form, node


def _infer(x: Spec, gamma: Spec, beta: Spec, *, eps: float) -> Spec:
    expect(len(x.shape) >= 1, f"layer_norm: x must have an axis, got {x}")
    expect_float("layer_norm: x", x)
    expect(gamma.shape == x.shape[-1:] == beta.shape, f"layer_norm: gamma {gamma}, beta {beta} must fit x {x}")
    expect(eps > 0, f"layer_norm: eps={eps} must be > 0")
    return x


def _columns(width: int, dtype: np.dtype) -> tuple[Array, Array]:
    """Columns of ones and of 1 / width, (width, 1): sums and means of rows as products."""
    column = ones(width, dtype)[:, None]
    return column, column / width


def _forward(x: Array, gamma: Array, beta: Array, *, eps: float) -> Array:
    width = x.shape[-1]
    if 0 < x.size == width:  # a decode step's row
        y = x - x.ravel().dot(ones(width, x.dtype)) / width
        row = y.ravel()
        # in float64, where no eps vanishes beside 0; as an array, since numpy takes a Python number twice the time
        row *= gamma * np.array(1 / math.sqrt(float(row.dot(row)) / width + eps), x.dtype)
        row += beta
        return y
    sums, means = _columns(width, x.dtype)
    y = x - x @ sums / width  # not x @ means: 1 / width is rounded, and a row of equal values must give exact zeros
    y *= gamma / np.sqrt((y * y) @ means + eps)
    y += beta
    return y


def _vjp(grad: Array, _out: Array, x: Array, gamma: Array, beta: Array, *, eps: float) -> tuple[Array, ...]:
    width = x.shape[-1]
    sums, means = _columns(width, x.dtype)
    unit = x - x @ sums / width
    deviation = np.sqrt((unit * unit) @ means + eps)
    unit /= deviation
    d_unit = grad * gamma
    # d_x = (d_unit - mean(d_unit) - unit * mean(d_unit * unit)) / deviation
    d_x = (d_unit - d_unit @ means - unit * ((d_unit * unit) @ means)) / deviation
    return d_x, (grad * unit).reshape(-1, width).sum(axis=0), grad.reshape(-1, width).sum(axis=0)


def _onnx(_x: Spec, _gamma: Spec, _beta: Spec, *, eps: float) -> Form:
    return (node("LayerNormalization", "x", "gamma", "beta", axis=-1, epsilon=eps),)


LAYER_NORM = OpDef(
    name="layer_norm",
    arguments=("x", "gamma", "beta"),
    infer=_infer,
    forward=_forward,
    vjp=_vjp,
    cost=no_macs,
    onnx=_onnx,
    parameters=("gamma", "beta"),
)
