"""relu, gelu and softmax; relu and gelu also as a product's own last step (its attribute ``activation``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from mlperf_opt.errors import GraphError, did_you_mean
from mlperf_opt.ops.base import Array, OpDef, Spec, expect, expect_float, no_macs
from mlperf_opt.ops.onnx_form import Form, direct, node

_SQRT_2_OVER_PI = 0.7978845608028654
_CUBIC = 0.044715


def _same(x: Spec) -> Spec:
    expect_float("x", x)
    return x


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _relu_vjp(grad: Array, out: Array, _x: Array) -> tuple[Array]:
    return (grad * (out > 0),)


@lru_cache(maxsize=8)
def _gelu_constants(dtype: np.dtype) -> tuple[Array, ...]:
    """sqrt(2/pi), the same times 0.044715, 1 and 1/2, as arrays: numpy converts a Python number at each use of it."""
    constants = tuple(np.array(c, dtype) for c in (_SQRT_2_OVER_PI, _SQRT_2_OVER_PI * _CUBIC, 1, 0.5))
    for constant in constants:
        constant.setflags(write=False)
    return constants


def _gelu_inner(x: Array, linear: Array, cubic: Array) -> Array:
    # x (a + b x x) in place: numpy's ** 3 is two orders of magnitude slower than products
    y = x * x
    y *= cubic
    y += linear
    y *= x
    return np.tanh(y, out=y)


def _gelu(x: Array) -> Array:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): the tanh form of Hendrycks and Gimpel, arXiv:1606.08415."""
    linear, cubic, one, half = _gelu_constants(x.dtype)
    y = _gelu_inner(x, linear, cubic)
    y += one
    y *= half  # before x: twice a large x is no float32
    y *= x
    return y


def _gelu_vjp(grad: Array, _out: Array, x: Array) -> tuple[Array]:
    # 0.5 ((1 + t) + (1 - t t) x slope), in place: training spent more time on fresh arrays than on numbers
    linear, cubic, _, _ = _gelu_constants(x.dtype)
    t = _gelu_inner(x, linear, cubic)
    y = x * x
    y *= 3 * _CUBIC * _SQRT_2_OVER_PI
    y += _SQRT_2_OVER_PI
    y *= x  # x slope
    rest = t * t
    np.subtract(1, rest, out=rest)
    y *= rest
    y += t
    y += 1
    y *= 0.5
    y *= grad
    return (y,)


ACTIVATIONS = ("relu", "gelu")  # what may be a product's own last step; "" is none


def check_activation(name: str, activation: object) -> None:
    """Raise `GraphError` unless a product may have that activation."""
    if activation != "" and activation not in ACTIVATIONS:
        raise GraphError(f"{name}: activation={activation} is unknown{did_you_mean(str(activation), ACTIVATIONS)}")


def activate(y: Array, activation: str) -> Array:
    """Return the activation of ``y``, which it may overwrite: the same numbers as those of the op of that name."""
    if activation == "relu":
        return np.maximum(y, 0, out=y)
    return _gelu(y) if activation == "gelu" else y


def activation_vjp(grad: Array, out: Array, activation: str, before: Callable[[], Array]) -> Array:
    """Return the gradient before the activation; ``before`` computes the value there, where it is needed."""
    if activation == "relu":
        return _relu_vjp(grad, out, out)[0]
    return _gelu_vjp(grad, out, before())[0] if activation == "gelu" else grad


def onnx_activated(form: Form, activation: str) -> Form:
    """Return the form of a product with its activation behind it."""
    if not activation:
        return form
    kind = node("Relu", "before") if activation == "relu" else node("Gelu", "before", approximate="tanh")
    return (*form[:-1], replace(form[-1], output="before"), kind)


def softmax(x: Array, axis: int = -1, out: Array | None = None) -> Array:
    """exp(x - max) / sum, into ``out`` (which may be x); the shift keeps exp in range. A row must hold one finite value."""
    y = np.subtract(x, np.maximum.reduce(x, axis=axis, keepdims=True), out=out)
    np.exp(y, out=y)
    y /= np.add.reduce(y, axis=axis, keepdims=True)
    return y


def softmax_vjp(grad: Array, out: Array) -> Array:
    """Gradient of softmax over the last axis: out * (grad - <grad, out>)."""
    return out * (grad - (grad * out).sum(axis=-1, keepdims=True))


def _softmax_infer(x: Spec) -> Spec:
    expect(len(x.shape) >= 1, f"softmax: x must have an axis, got {x}")
    expect_float("softmax: x", x)
    return x


RELU = OpDef("relu", ("x",), _same, _relu, _relu_vjp, no_macs, direct("Relu", "x"))
GELU = OpDef("gelu", ("x",), _same, _gelu, _gelu_vjp, no_macs, direct("Gelu", "x", approximate="tanh"))
SOFTMAX = OpDef(
    "softmax",
    ("x",),
    _softmax_infer,
    softmax,
    lambda grad, out, _x: (softmax_vjp(grad, out),),
    no_macs,
    direct("Softmax", "x", axis=-1),
)
