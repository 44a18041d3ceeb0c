"""layer_norm: (x - mean) / sqrt(variance + eps) * gamma + beta over the last axis (Ba, arXiv:1607.06450)."""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.ops.base import Array, OpDef, Spec, expect, expect_float, no_macs
from mlperf_opt.ops.onnx_form import Form, node


def _infer(x: Spec, gamma: Spec, beta: Spec, *, eps: float) -> Spec:
    expect(len(x.shape) >= 1, f"layer_norm: x must have an axis, got {x}")
    expect_float("layer_norm: x", x)
    expect(gamma.shape == x.shape[-1:] == beta.shape, f"layer_norm: gamma {gamma}, beta {beta} must fit x {x}")
    expect(eps > 0, f"layer_norm: eps={eps} must be > 0")
    return x


def _normalized(x: Array, eps: float) -> tuple[Array, Array]:
    width = x.shape[-1]
    centred = x - np.add.reduce(x, axis=-1, keepdims=True) / width
    # 1 / sqrt(sum / width + eps), both under the root times width: one call less on the small arrays of a decode step
    inverse = math.sqrt(width) / np.sqrt(np.vecdot(centred, centred)[..., None] + width * eps)
    centred *= inverse
    return centred, inverse


def _forward(x: Array, gamma: Array, beta: Array, *, eps: float) -> Array:
    y, _ = _normalized(x, eps)
    y *= gamma
    y += beta
    return y


def _vjp(grad: Array, _out: Array, x: Array, gamma: Array, beta: Array, *, eps: float) -> tuple[Array, ...]:
    unit, inverse = _normalized(x, eps)
    d_unit = grad * gamma
    # d_x = inverse * (d_unit - mean(d_unit) - unit * mean(d_unit * unit))
    d_x = inverse * (d_unit - d_unit.mean(axis=-1, keepdims=True) - unit * (d_unit * unit).mean(axis=-1, keepdims=True))
    width = x.shape[-1]
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
