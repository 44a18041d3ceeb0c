"""Threads of BLAS and OpenMP, fixed before numpy is imported: import this first."""

from __future__ import annotations

import os

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Settings that make OpenBLAS another library than the one that ships: figures with them are nobody's.
_FOREIGN = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def with_threads(threads: int) -> dict[str, str]:
    """Return this process's environment with that many threads, for a process that is to be started."""
    kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    return {**kept, **dict.fromkeys(_THREADS, str(threads))}


def fix_threads(threads: int = 1) -> None:
    """Set the threads of libraries that this process will import."""
    for name in _FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
