"""conv2d: cross-correlation of images (N, C, H, W) with filters (M, C, kh, kw), as one product over patches (im2col).

Its activation, where it has one, comes last.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mlperf_opt.ops.activation import activate, activation_vjp, check_activation
from mlperf_opt.ops.base import Array, Cost, OpDef, Spec, are_known, expect, expect_float, is_whole, moved_bytes


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Length of one output axis: floor((size + 2 padding - kernel) / stride) + 1."""
    return (size + 2 * padding - kernel) // stride + 1


def patches(x: Array, kh: int, kw: int, stride: int, padding: int, fill: float = 0) -> Array:
    """Return every receptive field of ``x`` (N, C, H, W) as a row: (N, H', W', C * kh * kw)."""
    if padding:
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=fill)
    windows = sliding_window_view(x, (kh, kw), axis=(2, 3))[:, :, ::stride, ::stride]  # (N, C, H', W', kh, kw)
    n, c, h, w = windows.shape[:4]
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, h, w, c * kh * kw)


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
    m, _, kh, kw = weight.shape
    y = patches(x, kh, kw, stride, padding) @ weight.reshape(m, -1).T  # (N, H', W', M)
    if bias is not None:
        y += bias
    return activate(y, activation).transpose(0, 3, 1, 2)


def _vjp(
    grad: Array, out: Array, x: Array, weight: Array, bias: Array | None, *, stride: int, padding: int, activation: str = ""
) -> tuple[Array | None, ...]:
    grad = activation_vjp(grad, out, activation, lambda: _forward(x, weight, bias, stride=stride, padding=padding))
    m, c, kh, kw = weight.shape
    rows = grad.transpose(0, 2, 3, 1)  # (N, H', W', M)
    flat = rows.reshape(-1, m)
    d_weight = flat.T @ patches(x, kh, kw, stride, padding).reshape(len(flat), -1)
    d_patches = (rows @ weight.reshape(m, -1)).reshape(*rows.shape[:3], c, kh, kw)
    n, _, h, w = x.shape
    d_padded = np.zeros((n, c, h + 2 * padding, w + 2 * padding), x.dtype)
    h_out, w_out = rows.shape[1:3]
    for i in range(kh):  # scatter each kernel position back: the transpose of `patches`
        for j in range(kw):
            target = d_padded[:, :, i : i + stride * h_out : stride, j : j + stride * w_out : stride]
            target += d_patches[..., i, j].transpose(0, 3, 1, 2)
    d_x = d_padded[:, :, padding : padding + h, padding : padding + w]
    return d_x, d_weight.reshape(weight.shape), None if bias is None else flat.sum(axis=0)


def conv2d_cost(out: Spec, x: Spec, weight: Spec, *others: Spec | None) -> Cost:
    """MACs = output elements x (C kh kw); shared by conv2d and qconv2d."""
    per_output = weight.size // int(weight.shape[0])
    return Cost(out.size * per_output, moved_bytes(out, x, weight, *others))


def _cost(out: Spec, x: Spec, weight: Spec, bias: Spec | None, **_: int | str) -> Cost:
    return conv2d_cost(out, x, weight, bias)


CONV2D = OpDef(
    name="conv2d",
    arguments=("x", "weight", "bias?"),
    infer=_infer,
    forward=_forward,
    vjp=_vjp,
    cost=_cost,
    onnx="Conv",
    parameters=("weight", "bias"),
    matrix="weight",
)
