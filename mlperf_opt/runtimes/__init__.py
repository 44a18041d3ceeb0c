"""Ways to execute a graph, by name in `RUNTIMES`. The numpy runtime defines what a graph means."""

from mlperf_opt.runtimes.agreement import Agreement, agreement, difference, is_quantized, may_flip
from mlperf_opt.runtimes.base import Executable, Isa, Observer, Runtime, RuntimeOptions, Session, Sparse
from mlperf_opt.runtimes.compiled import COMPILED
from mlperf_opt.runtimes.generation import complete, continuations, greedy, rows_at_once, stepwise
from mlperf_opt.runtimes.numpy_runtime import NUMPY, intermediate_values
from mlperf_opt.runtimes.onnx_runtime import ONNX, OnnxExecutable

RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (NUMPY, COMPILED, ONNX)}

__all__ = [
    "COMPILED",
    "NUMPY",
    "ONNX",
    "RUNTIMES",
    "Agreement",
    "Executable",
    "Isa",
    "Observer",
    "OnnxExecutable",
    "Runtime",
    "RuntimeOptions",
    "Session",
    "Sparse",
    "agreement",
    "complete",
    "continuations",
    "difference",
    "greedy",
    "intermediate_values",
    "is_quantized",
    "may_flip",
    "rows_at_once",
    "stepwise",
]
