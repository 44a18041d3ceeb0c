"""Ways to execute a graph, by name in `RUNTIMES`. The numpy runtime defines what a graph means."""

from mlperf_opt.runtimes.agreement import Agreement, agreement, difference, is_quantized
from mlperf_opt.runtimes.base import Executable, Observer, Runtime, Session
from mlperf_opt.runtimes.generation import complete, greedy, stepwise
from mlperf_opt.runtimes.numpy_runtime import NUMPY, intermediate_values
from mlperf_opt.runtimes.onnx_runtime import ONNX, OnnxExecutable

RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (NUMPY, ONNX)}

__all__ = [
    "NUMPY",
    "ONNX",
    "RUNTIMES",
    "Agreement",
    "Executable",
    "Observer",
    "OnnxExecutable",
    "Runtime",
    "Session",
    "agreement",
    "complete",
    "difference",
    "greedy",
    "intermediate_values",
    "is_quantized",
    "stepwise",
]
