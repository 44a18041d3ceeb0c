"""linear: y = activation(x @ weight.T + bias)."""

from __future__ import annotations

from mlperf_opt.ops.activation import activate, activation_vjp, check_activation, onnx_activated
from mlperf_opt.ops.base import Array, Cost, OpDef, Spec, expect, expect_float, moved_bytes
from mlperf_opt.ops.onnx_form import Form, node, then_add


def _infer(x: Spec, weight: Spec, bias: Spec | None, *, activation: str = "") -> Spec:
    expect(len(weight.shape) == 2, f"linear: weight must be (M, K), got {weight}")
    expect(len(x.shape) >= 1 and x.shape[-1] == weight.shape[1], f"linear: last axis of x {x} and of weight {weight} differ")
    expect(bias is None or bias.shape == weight.shape[:1], f"linear: bias {bias} must be ({weight.shape[0]},)")
    expect_float("linear: x", x)
    expect_float("linear: weight", weight)
    check_activation("linear", activation)
    return Spec((*x.shape[:-1], weight.shape[0]), x.dtype)


def _forward(x: Array, weight: Array, bias: Array | None, *, activation: str = "") -> Array:
    is_row = 0 < x.size == x.shape[-1]
    # (M, K) . (K,) for one row: the same product of BLAS with less around it, which is half of what a decode step takes
    y = weight.dot(x.ravel()) if is_row else x @ weight.T  # (..., K) @ (K, M)
    if bias is not None:
        y += bias
    if activation:
        y = activate(y, activation)
    if is_row:
        y = y[None, None] if x.ndim == 3 else y[(None,) * (x.ndim - 1)]
    return y


def _vjp(
    grad: Array,
    out: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    *,
    activation: str = "",
    input_gradient: bool = True,
) -> tuple[Array | None, ...]:
    grad = activation_vjp(grad, out, activation, lambda: _forward(x, weight, bias))
    rows = grad.reshape(-1, grad.shape[-1])
    d_weight = rows.T @ x.reshape(-1, x.shape[-1])
    return grad @ weight if input_gradient else None, d_weight, None if bias is None else rows.sum(axis=0)


def _cost(out: Spec, x: Spec, weight: Spec, bias: Spec | None, **_: str) -> Cost:
    return Cost(out.size * int(weight.shape[1]), moved_bytes(out, x, weight, bias))


def _onnx(x: Spec, _weight: Spec, bias: Spec | None, *, activation: str = "") -> Form:
    term = None if bias is None else "bias"
    if len(x.shape) == 2:  # Gemm adds the bias too, but takes matrices only
        form: Form = (node("Gemm", "x", "weight", *([term] if term else []), transB=1),)
    else:
        form = then_add(node("MatMul", "x", "weight.T"), term)
    return onnx_activated(form, activation)


LINEAR = OpDef(
    name="linear",
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
