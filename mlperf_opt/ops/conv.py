"""conv2d: cross-correlation of images (N, C, H, W) with filters (M, C, kh, kw), as one product over patches (im2col).

The product is computed with the batch as the last axis in memory, where a copy of patches moves W' x N numbers in one run
instead of kw, and the sum back over overlapping patches adds as many. Arrays keep their shape (N, C, H, W): it is a view.
Its activation, where it has one, comes last.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlperf_opt.ops.activation import activate, activation_vjp, check_activation, onnx_activated
from mlperf_opt.ops.base import Array, Cost, OpDef, Spec, are_known, expect, expect_float, is_whole, moved_bytes
from mlperf_opt.ops.onnx_form import Form, node


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Length of one output axis: floor((size + 2 padding - kernel) / stride) + 1."""
    return (size + 2 * padding - kernel) // stride + 1


def _padded(x: Array, padding: int) -> Array:
    """Return ``x`` (N, C, H, W) with its batch last and zeros around its images: (C, H + 2 padding, W + 2 padding, N)."""
    n, c, h, w = x.shape
    y = np.zeros((c, h + 2 * padding, w + 2 * padding, n), x.dtype)  # np.pad takes 17 us for what these lines do in one
    y[:, padding : padding + h, padding : padding + w] = x.transpose(1, 2, 3, 0)
    return y


def patches(x: Array, kh: int, kw: int, stride: int, padding: int) -> Array:
    """Return every receptive field of ``x`` (N, C, H, W) as a column: (C * kh * kw, H' * W' * N)."""
    padded = _padded(x, padding)
    c, height, width, n = padded.shape
    h, w = output_size(height, kh, stride, 0), output_size(width, kw, stride, 0)
    channel, row, column, sample = padded.strides
    strides = (channel, row, column, row * stride, column * stride, sample)
    # a view that reads padded[c, i + stride h', j + stride w', n]
    windows = np.ndarray((c, kh, kw, h, w, n), padded.dtype, padded, 0, strides)
    return windows.reshape(c * kh * kw, h * w * n)


def product(x: Array, weight: Array, stride: int, padding: int) -> Array:
    """Return the cross-correlation without a bias, (N, M, H', W'), computed and stored in the batch-last order."""
    m, _, kh, kw = weight.shape
    h, w = (output_size(size, kernel, stride, padding) for size, kernel in zip(x.shape[2:], (kh, kw), strict=True))
    y = weight.reshape(m, -1) @ patches(x, kh, kw, stride, padding)
    return y.reshape(m, h, w, len(x)).transpose(3, 0, 1, 2)


def infer_conv2d(x: Spec, weight: Spec, bias: Spec | None, *, stride: int, padding: int) -> Spec:
    """Shape rule shared by conv2d and qconv2d."""
    expect(len(x.shape) == 4, f"conv2d: x must be (N, C, H, W), got {x}")
    expect(len(weight.shape) == 4, f"conv2d: weight must be (M, C, kh, kw), got {weight}")
    expect(x.shape[1] == weight.shape[1], f"conv2d: channels of x {x} and weight {weight} differ")
    expect(
        is_whole(stride, 1) and is_whole(padding, 0),
        f"conv2d: stride={stride} must be a whole number >= 1 and padding={padding} one >= 0",
    )
    expect(are_known(*x.shape[1:]), f"conv2d: only the batch axis of x {x} may be named")
    expect(bias is None or bias.shape == weight.shape[:1], f"conv2d: bias {bias} must be ({weight.shape[0]},)")
    m, _, kh, kw = (int(d) for d in weight.shape)
    h, w = (output_size(int(s), k, stride, padding) for s, k in zip(x.shape[2:], (kh, kw), strict=True))
    expect(h >= 1 and w >= 1, f"conv2d: a kernel of {kh}x{kw} does not fit {x} with padding={padding}")
    return Spec((x.shape[0], m, h, w), x.dtype)


def _infer(x: Spec, weight: Spec, bias: Spec | None, *, stride: int, padding: int, activation: str = "") -> Spec:
    check_activation("conv2d", activation)
    expect_float("conv2d: x", x)
    expect_float("conv2d: weight", weight)
    return infer_conv2d(x, weight, bias, stride=stride, padding=padding)


def _forward(x: Array, weight: Array, bias: Array | None, *, stride: int, padding: int, activation: str = "") -> Array:
    y = product(x, weight, stride, padding)
    if bias is not None:
        y += bias[:, None, None]
    return activate(y, activation)


def _vjp(
    grad: Array,
    out: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    stride: int,
    padding: int,
    activation: str = "",
    input_gradient: bool = True,
) -> tuple[Array | None, ...]:
    grad = activation_vjp(grad, out, activation, lambda: _forward(x, weight, bias, stride=stride, padding=padding))
    m, c, kh, kw = weight.shape
    n, _, h, w = x.shape
    columns = np.ascontiguousarray(grad.transpose(1, 2, 3, 0)).reshape(m, -1)  # (M, H' * W' * N)
    d_weight = (patches(x, kh, kw, stride, padding) @ columns.T).T.reshape(weight.shape)
    d_bias = None if bias is None else columns.sum(axis=1)
    if not input_gradient:
        return None, d_weight, d_bias
    h_out, w_out = grad.shape[2:]
    d_patches = (weight.reshape(m, -1).T @ columns).reshape(c, kh, kw, h_out, w_out, n)
    d_padded = np.zeros((c, h + 2 * padding, w + 2 * padding, n), grad.dtype)
    for i in range(kh):  # add each kernel position back: the transpose of `patches`
        for j in range(kw):
            target = d_padded[:, i : i + stride * h_out : stride, j : j + stride * w_out : stride]
            target += d_patches[:, i, j]
    d_x = d_padded[:, padding : padding + h, padding : padding + w]
    return d_x.transpose(3, 0, 1, 2), d_weight, d_bias


def conv2d_cost(out: Spec, x: Spec, weight: Spec, *others: Spec | None) -> Cost:
    """MACs = output elements x (C kh kw); shared by conv2d and qconv2d."""
    per_output = weight.size // int(weight.shape[0])
    return Cost(out.size * per_output, moved_bytes(out, x, weight, *others))


def _cost(out: Spec, x: Spec, weight: Spec, bias: Spec | None, **_: int | str) -> Cost:
    return conv2d_cost(out, x, weight, bias)


def conv_attributes(weight: Spec, stride: int, padding: int) -> dict[str, Any]:
    """ONNX attributes of a convolution; shared by conv2d and qconv2d."""
    kernel = [int(d) for d in weight.shape[2:]]
    return {"kernel_shape": kernel, "strides": [stride] * 2, "pads": [padding] * 4}


def _onnx(_x: Spec, weight: Spec, bias: Spec | None, *, stride: int, padding: int, activation: str = "") -> Form:
    terms = () if bias is None else ("bias",)
    form = (node("Conv", "x", "weight", *terms, **conv_attributes(weight, stride, padding)),)
    return onnx_activated(form, activation)


CONV2D = OpDef(
    name="conv2d",
    arguments=("x", "weight", "bias?"),
    infer=_infer,
    forward=_forward,
    vjp=_vjp,
    cost=_cost,
    onnx=_onnx,
    parameters=("weight", "bias"),
    matrix="weight",
    skips_input_gradient=True,
)
