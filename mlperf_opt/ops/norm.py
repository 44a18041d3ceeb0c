"""layer_norm: (x - mean) / sqrt(variance + eps) * gamma + beta over the last axis (Ba, arXiv:1607.06450)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from mlperf_opt.ops.base import Array, OpDef, Spec, expect, expect_float, no_macs
from mlperf_opt.ops.onnx_form import Form, node


def _infer(x: Spec, gamma: Spec, beta: Spec, *, eps: float) -> Spec:
    expect(len(x.shape) >= 1, f"layer_norm: x must have an axis, got {x}")
    expect_float("layer_norm: x", x)
    expect(gamma.shape == x.shape[-1:] == beta.shape, f"layer_norm: gamma {gamma}, beta {beta} must fit x {x}")
    expect(eps > 0, f"layer_norm: eps={eps} must be > 0")
    return x


@lru_cache(maxsize=8)
def _ones(width: int, dtype: np.dtype) -> Array:
    """Ones (width,): sums as products, which cost a decode step less than reductions."""
    ones = np.ones(width, dtype)
    ones.setflags(write=False)
    return ones


def _columns(width: int, dtype: np.dtype) -> tuple[Array, Array]:
    """Columns of ones and of 1 / width, (width, 1): sums and means of rows as products."""
    ones = _ones(width, dtype)[:, None]
    return ones, ones / width


def _forward(x: Array, gamma: Array, beta: Array, *, eps: float) -> Array:
    if 0 < x.size == x.shape[-1]:  # a decode step's row: its mean and deviation as Python numbers, quicker than numpy's
        y = x - float(x.ravel().dot(_ones(x.size, x.dtype))) / x.size
        row = y.ravel()
        row *= gamma * (1 / math.sqrt(float(row.dot(row)) / x.size + eps))
        row += beta
        return y
    ones, means = _columns(x.shape[-1], x.dtype)
    y = x - x @ ones / len(ones)  # not x @ means: 1 / width is rounded, and a row of equal values must give exact zeros
    y *= gamma / np.sqrt((y * y) @ means + eps)
    y += beta
    return y


def _vjp(grad: Array, _out: Array, x: Array, gamma: Array, beta: Array, *, eps: float) -> tuple[Array, ...]:
    width = x.shape[-1]
    ones, means = _columns(width, x.dtype)
    unit = x - x @ ones / width
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
