"""flatten and add."""

from __future__ import annotations

import math

from mlperf_opt.ops.base import Array, OpDef, Spec, expect, expect_float, no_macs
from mlperf_opt.ops.onnx_form import direct


def _flatten_infer(x: Spec) -> Spec:
    expect(len(x.shape) >= 2, f"flatten: x must have a batch axis and another, got {x}")
    rest = x.shape[1:]
    expect(all(isinstance(d, int) for d in rest), f"flatten: only the batch axis of {x} may be named")
    return Spec((x.shape[0], math.prod(int(d) for d in rest)), x.dtype)


def _flatten(x: Array) -> Array:
    return x.reshape(len(x), math.prod(x.shape[1:]))  # -1 would not do for an x of no rows


def _flatten_vjp(grad: Array, _out: Array, x: Array) -> tuple[Array]:
    return (grad.reshape(x.shape),)


def _add_infer(x: Spec, y: Spec) -> Spec:
    expect(x == y, f"add: {x} and {y} differ")
    expect_float("add: x", x)
    return x


def _add(x: Array, y: Array) -> Array:
    return x + y


FLATTEN = OpDef("flatten", ("x",), _flatten_infer, _flatten, _flatten_vjp, no_macs, direct("Flatten", "x", axis=1))
ADD = OpDef("add", ("x", "y"), _add_infer, _add, lambda grad, _out, _x, _y: (grad, grad), no_macs, direct("Add", "x", "y"))
