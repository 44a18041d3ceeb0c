"""export: the model as an ONNX file, checked and compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from mlperf_opt.errors import ConfigError, PassError
from mlperf_opt.graph import Graph
from mlperf_opt.onnx_export import IR_VERSION, OPSET, export, require_installed
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.runtimes import NUMPY, OnnxExecutable, agreement, difference, is_quantized, stepwise


@dataclass(frozen=True)
class Export(Pass):
    """Write the model as an ONNX file, weights inline, beside the step's model file. The graph stays as it is.

    The file is checked by onnx.checker. onnxruntime, if it is installed, runs it on the calibration split, and must agree
    with the numpy runtime up to rounding; how many predictions are equal goes to export.csv. A KV cache becomes inputs
    ``past.*`` and outputs ``present.*``.
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
        return PassResult(graph, row, {"export": [row]}, {"onnx": data})


def _compared(graph: Graph, data: bytes, context: PassContext) -> dict[str, Any]:
    """Return how onnxruntime agrees with the numpy runtime; nothing where it is not installed.

    Raises:
        PassError: it differs by more than rounding.
    """
    if find_spec("onnxruntime") is None:
        return dict.fromkeys(("predictions", "equal_share", "max_abs_diff"))
    inputs = context.data.calibration.inputs
    expected, actual = stepwise(NUMPY.prepare(graph), inputs), stepwise(OnnxExecutable(graph, data), inputs)
    fact = difference(expected, actual, is_quantized(graph))
    if fact:
        raise PassError(f"export: onnxruntime disagrees with the numpy runtime: {fact}")
    found = agreement(expected, actual)
    return {
        "predictions": found.predictions,
        "equal_share": found.equal_share,
        "max_abs_diff": found.max_abs_diff,
    }
