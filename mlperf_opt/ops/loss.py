"""cross_entropy: mean of -log softmax(logits)[target] over the targets that count."""

from __future__ import annotations

import numpy as np

from mlperf_opt.errors import GraphError
from mlperf_opt.ops.base import Array, OpDef, Spec, expect, expect_float, no_macs
from mlperf_opt.ops.onnx_form import Form, ints, known, node

IGNORE = -1  # a target with this value (a prompt's token, padding) has no part in the mean


def _infer(logits: Spec, targets: Spec) -> Spec:
    expect(len(logits.shape) >= 1, f"cross_entropy: logits must have a class axis, got {logits}")
    expect_float("cross_entropy: logits", logits)
    expect(logits.shape[:-1] == targets.shape, f"cross_entropy: targets {targets} must be the leading axes of {logits}")
    expect(targets.dtype.startswith("int"), f"cross_entropy: targets must be class ids, got {targets}")
    return Spec((), logits.dtype)


def log_softmax(logits: Array) -> Array:
    """x - max - log sum exp(x - max) over the last axis: finite for any finite input."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _rows(logits: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Return (rows, class ids, log probabilities) of the targets that count."""
    classes = logits.shape[-1]
    flat = targets.reshape(-1)
    rows = np.flatnonzero(flat != IGNORE)
    ids = flat[rows]
    if not len(ids):
        raise GraphError("cross_entropy: no target counts (all are ignored or the batch is empty)")
    if ids.min() < 0 or ids.max() >= classes:
        raise GraphError(f"cross_entropy: class ids must be 0..{classes - 1}, got {ids.min()}..{ids.max()}")
    return rows, ids, log_softmax(logits.reshape(-1, classes)[rows])


def _forward(logits: Array, targets: Array) -> Array:
    rows, ids, log_p = _rows(logits, targets)
    return np.asarray(-log_p[np.arange(len(rows)), ids].mean(), logits.dtype)


def _vjp(grad: Array, _out: Array, logits: Array, targets: Array) -> tuple[Array, None]:
    rows, ids, log_p = _rows(logits, targets)
    d_rows = np.exp(log_p)
    d_rows[np.arange(len(rows)), ids] -= 1
    d_logits = np.zeros((targets.size, logits.shape[-1]), logits.dtype)
    d_logits[rows] = d_rows * (grad / len(rows))
    return d_logits.reshape(logits.shape), None


def _onnx(logits: Spec, _targets: Spec) -> Form:
    classes = known(logits.shape[-1], "the number of classes")
    return (
        node("Reshape", "logits", ints(-1, classes), to="rows"),
        node("Reshape", "targets", ints(-1), to="ids"),
        node("SoftmaxCrossEntropyLoss", "rows", "ids", ignore_index=IGNORE, reduction="mean"),
    )


CROSS_ENTROPY = OpDef("cross_entropy", ("logits", "targets"), _infer, _forward, _vjp, no_macs, _onnx)
