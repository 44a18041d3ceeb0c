"""Ways to execute a graph, by name in `RUNTIMES`. The numpy runtime defines what a graph means."""

from mlperf_opt.runtimes.base import Executable, Isa, Observer, Runtime, RuntimeOptions, Session
from mlperf_opt.runtimes.compiled import COMPILED
from mlperf_opt.runtimes.generation import complete, greedy, stepwise
from mlperf_opt.runtimes.numpy_runtime import NUMPY, intermediate_values

RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (NUMPY, COMPILED)}

__all__ = [
    "COMPILED",
    "NUMPY",
    "RUNTIMES",
    "Executable",
    "Isa",
    "Observer",
    "Runtime",
    "RuntimeOptions",
    "Session",
    "complete",
    "greedy",
    "intermediate_values",
    "stepwise",
]
