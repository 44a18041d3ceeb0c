"""The compiled runtime: a graph becomes a flat program over one arena, run by one native call (docs/architecture.md).

program.py     Graph -> instructions, constants, arena; `lowerings.py` is the table of ops
executable.py  call, threads, sessions; `worker.py` is one thread's memory; `observe.py` runs node by node
kernels/       the machine and its kernels
"""

from __future__ import annotations

from mlperf_opt.graph import Graph
from mlperf_opt.runtimes.base import Executable, Runtime, RuntimeOptions


def _make(graph: Graph, options: RuntimeOptions) -> Executable:
    from mlperf_opt.runtimes.compiled.executable import CompiledExecutable  # compiles, or loads, the kernels

    return CompiledExecutable(graph, options)


COMPILED = Runtime("compiled", _make, requires=("numba",), advice="pip install numba, or runtime=numpy")
