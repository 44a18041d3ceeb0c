"""export: the model as an ONNX file, checked and compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

from mlperf_opt.errors import ConfigError, PassError
from mlperf_opt.extras import is_installed, require_installed
from mlperf_opt.graph import Graph
from mlperf_opt.onnx_export import IR_VERSION, OPSET, export
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.runtimes import NUMPY, OnnxExecutable, agreement, difference, is_quantized, stepwise


@dataclass(frozen=True)
class Export(Pass):
    """Write the model as an ONNX file, weights inline, beside the step's model file. The graph stays as it is.

    The file is checked by onnx.checker. onnxruntime, if it is installed, runs it on the calibration split, fused as it likes
    and operator by operator, and must agree with the numpy runtime up to rounding both times; how many predictions are equal
    goes to the table `check`. A KV cache becomes inputs ``past.*`` and outputs ``present.*``.
    """

    effect: ClassVar = "keeps_weights"
    tolerance: ClassVar = 0.0

    def check(self, graph: Graph) -> None:
        try:
            require_installed("export", "onnx")
        except ConfigError as error:
            raise PassError(str(error)) from None

    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        data = export(graph)
        row: dict[str, Any] = {
            "model": graph.name,
            "opset": OPSET,
            "ir_version": IR_VERSION,
            "checker": "passed",  # `export` raises otherwise
            "file_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            **_compared(graph, data, context),
        }
        return PassResult(graph, row, {"check": [row]}, {"onnx": data})


def _compared(graph: Graph, data: bytes, context: PassContext) -> dict[str, Any]:
    """Return how onnxruntime agrees with the numpy runtime; nothing where it is not installed.

    Raises:
        PassError: it differs by more than rounding.
    """
    columns = ("predictions", "equal_share", "max_abs_diff", "unfused_equal_share", "unfused_max_abs_diff")
    if not is_installed("onnxruntime"):
        return dict.fromkeys(columns)
    inputs = context.data.calibration.inputs
    expected = stepwise(NUMPY.prepare(graph), inputs)
    found = []
    for fuse in (True, False):
        actual = stepwise(OnnxExecutable(graph, data, fuse=fuse), inputs)
        fact = difference(expected, actual, is_quantized(graph))
        if fact:
            how = "" if fuse else ", operator by operator,"
            raise PassError(f"export: onnxruntime{how} disagrees with the numpy runtime: {fact}")
        found.append(agreement(expected, actual))
    fused, unfused = found
    values = (fused.predictions, fused.equal_share, fused.max_abs_diff, unfused.equal_share, unfused.max_abs_diff)
    return dict(zip(columns, values, strict=True))
