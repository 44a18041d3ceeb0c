"""qembedding: rows of a table of codes, times the table's scale or that of the row."""

from __future__ import annotations

import numpy as np

from mlperf_opt.ops.base import Array, Cost, OpDef, Spec, expect
from mlperf_opt.ops.embedding import EMBEDDING, embedding_cost, infer_embedding
from mlperf_opt.ops.onnx_form import Form, cast, ints, node
from mlperf_opt.ops.quantized import check_codes


def _qembedding_infer(tokens: Spec, table: Spec, scale: Spec) -> Spec:
    check_codes(table, "int8", "qembedding: table")
    expect(scale.shape in ((), table.shape[:1]), f"qembedding: scale {scale} must be () or ({table.shape[0]},)")
    return infer_embedding(tokens, table)


def _qembedding(tokens: Array, table: Array, scale: Array) -> Array:
    codes = EMBEDDING.forward(tokens, table)
    return codes.astype(np.float32) * (scale[tokens][..., None] if scale.ndim else scale)


def _qembedding_vjp(grad: Array, out: Array, tokens: Array, table: Array, _scale: Array) -> tuple[Array | None, ...]:
    assert EMBEDDING.vjp is not None
    return *EMBEDDING.vjp(grad, out, tokens, table), None


def _qembedding_cost(out: Spec, tokens: Spec, table: Spec, scale: Spec) -> Cost:
    base = embedding_cost(out, tokens, table)
    return Cost(0, base.bytes + (4 * tokens.size if scale.shape else scale.nbytes))


def _qembedding_onnx(_tokens: Spec, _table: Spec, scale: Spec) -> Form:
    """Look up codes, then make them real: dequantizing first would make the whole table real at each call."""
    form = (node("Gather", "table", "tokens", to="codes", axis=0), cast("codes", "float32", to="wide"))
    if scale.shape:
        form += (node("Unsqueeze", "scale", ints(1), to="scales"), node("Gather", "scales", "tokens", to="step", axis=0))
    return (*form, node("Mul", "wide", "step" if scale.shape else "scale"))


QEMBEDDING = OpDef(
    "qembedding",
    ("tokens", "table", "scale"),
    _qembedding_infer,
    _qembedding,
    _qembedding_vjp,
    _qembedding_cost,
    _qembedding_onnx,
    parameters=("table",),
    matrix="table",
)
