"""The compiled runtime: a graph becomes a flat program over one arena, run by one native call (docs/architecture.md).

program.py     Graph -> instructions, constants, arena; `lowerings.py` is the table of ops
executable.py  call, threads, sessions; `worker.py` is one thread's memory; `observe.py` runs node by node
sparse_ops.py  which linear layers run sparse, by `break_even.py`; `sparse_packing.py` packs them
kernels/       the machine and its kernels
"""

from __future__ import annotations

from importlib.util import find_spec

from mlperf_opt.errors import ConfigError
from mlperf_opt.graph import Graph
from mlperf_opt.runtimes.base import Executable, Runtime, RuntimeOptions


def _make(graph: Graph, options: RuntimeOptions) -> Executable:
    from mlperf_opt.runtimes.compiled.executable import CompiledExecutable  # imports numba

    return CompiledExecutable(graph, options)


def _require() -> None:
    if find_spec("numba") is None:
        raise ConfigError("runtime=compiled needs numba: pip install numba, or choose runtime=numpy")


COMPILED = Runtime("compiled", _make, require=_require, exact=True)
