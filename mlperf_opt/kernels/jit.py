"""How kernels are compiled: once, without the interpreter lock, cached on disk under a hash of their own sources.

numba's file cache notices a changed file, but not a changed file that it imports; so the folder is named after all of them.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config as _config

F = TypeVar("F", bound=Callable[..., Any])
config: Any = _config  # numba fills the module in when it is imported


@cache
def cache_folder() -> str:
    """Return the folder of compiled kernels: below XDG_CACHE_HOME or ~/.cache, one per version of the sources."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256("".join([numba.__version__, platform.python_version()]).encode())
    for source in sources:
        digest.update(source.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return str(base / "mlperf_opt" / digest.hexdigest()[:16])


def kernel(*signatures: str) -> Callable[[F], F]:
    """Decorate a function to be compiled; a user's own numba settings are left as they are.

    Args:
        signatures: compile for these types when the module is imported (from the cache, where it is there already);
            none: when it is first called, which kernels that other kernels call want.
    """

    def decorate(function: F) -> F:
        theirs = config.CACHE_DIR
        config.CACHE_DIR = cache_folder()
        try:
            compiled: Any = numba.njit(list(signatures) or None, nogil=True, cache=bool(signatures), error_model="numpy")
            return compiled(function)
        finally:
            config.CACHE_DIR = theirs

    return decorate


@cache
def features() -> frozenset[str]:
    """Return the features of the CPU that kernels are compiled for, by LLVM's names (``avx512vnni``)."""
    from numba.core.codegen import get_host_cpu_features

    text = config.CPU_FEATURES
    if text is None:
        text = "" if config.CPU_NAME else get_host_cpu_features()
    return frozenset(word[1:] for word in text.split(",") if word.startswith("+"))
