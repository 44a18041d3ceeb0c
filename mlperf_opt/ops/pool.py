"""max_pool2d and avg_pool2d over windows of (N, C, H, W); no padding, a partial last window is dropped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlperf_opt.ops.base import Array, OpDef, Spec, are_known, expect, expect_float, is_whole, no_macs
from mlperf_opt.ops.conv import output_size
from mlperf_opt.ops.onnx_form import Form, node


def _infer(x: Spec, *, size: int, stride: int) -> Spec:
    expect(len(x.shape) == 4, f"pool2d: x must be (N, C, H, W), got {x}")
    whole = is_whole(size, 1) and is_whole(stride, 1)
    expect(whole, f"pool2d: size={size} and stride={stride} must be whole numbers >= 1")
    expect(are_known(*x.shape[2:]), f"pool2d: height and width of x {x} must be numbers")
    h, w = (output_size(int(s), size, stride, 0) for s in x.shape[2:])
    expect(h >= 1 and w >= 1, f"pool2d: a window of {size} does not fit {x}")
    return Spec((*x.shape[:2], h, w), x.dtype)


def _taps(x: Array, size: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Yield, for each place in the window, the slices of H and W that hold that place of every window."""
    h, w = (output_size(s, size, stride, 0) for s in x.shape[2:])
    for i in range(size):
        for j in range(size):
            yield slice(i, i + stride * h, stride), slice(j, j + stride * w, stride)


def _max(x: Array, *, size: int, stride: int) -> Array:
    first, *others = (x[:, :, rows, columns] for rows, columns in _taps(x, size, stride))
    out = first.copy(order="K")  # the order of x in memory: the batch may be its last axis there
    for tap in others:
        np.maximum(out, tap, out=out)
    return out


def _max_vjp(grad: Array, out: Array, x: Array, *, size: int, stride: int) -> tuple[Array]:
    d_x = np.zeros_like(x, grad.dtype)
    free = np.ones_like(out, bool)  # of equal maxima the first takes the gradient
    for rows, columns in _taps(x, size, stride):
        hit = x[:, :, rows, columns] == out
        hit &= free
        free ^= hit
        place = d_x[:, :, rows, columns]
        if stride >= size:  # no two windows share a place
            np.multiply(grad, hit, out=place)
        else:
            place += grad * hit
    return (d_x,)


def _avg_infer(x: Spec, *, size: int, stride: int) -> Spec:
    expect_float("avg_pool2d: x", x)
    return _infer(x, size=size, stride=stride)


def _avg(x: Array, *, size: int, stride: int) -> Array:
    total = sum(x[:, :, rows, columns] for rows, columns in _taps(x, size, stride))
    return np.asarray(total / x.dtype.type(size * size))


def _avg_vjp(grad: Array, _out: Array, x: Array, *, size: int, stride: int) -> tuple[Array]:
    d_x = np.zeros_like(x, grad.dtype)
    share = grad / grad.dtype.type(size * size)
    for rows, columns in _taps(x, size, stride):
        d_x[:, :, rows, columns] += share
    return (d_x,)


def _onnx_max(_x: Spec, *, size: int, stride: int) -> Form:
    return (node("MaxPool", "x", kernel_shape=[size, size], strides=[stride, stride]),)


def _onnx_avg(_x: Spec, *, size: int, stride: int) -> Form:
    return (node("AveragePool", "x", kernel_shape=[size, size], strides=[stride, stride]),)


MAX_POOL2D = OpDef("max_pool2d", ("x",), _infer, _max, _max_vjp, no_macs, _onnx_max)
AVG_POOL2D = OpDef("avg_pool2d", ("x",), _avg_infer, _avg, _avg_vjp, no_macs, _onnx_avg)
