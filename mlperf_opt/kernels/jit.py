"""How kernels are compiled: once, without the interpreter lock, cached on disk (see `cache.py`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numba
from numba.core import config as _config

from mlperf_opt.kernels.cache import writable_folder

F = TypeVar("F", bound=Callable[..., Any])
config: Any = _config  # numba fills the module in when it is imported


def kernel(*signatures: str, inline: bool = False) -> Callable[[F], F]:
    """Decorate a function to be compiled; a user's own numba settings are left as they are.

    Args:
        signatures: compile for these types when the module is imported (from the cache, where it is there already);
            none: when it is first called, which kernels that other kernels call want.
        inline: copy it into its caller before types are inferred. LLVM inlines what is worth it anyway; this spares a large
            one, which holds all that it calls, from being optimized and kept a second time.
    """

    def decorate(function: F) -> F:
        theirs = config.CACHE_DIR
        folder = writable_folder() if signatures else None
        config.CACHE_DIR = str(folder or theirs)
        try:
            compiled: Any = numba.njit(
                list(signatures) or None,
                nogil=True,
                cache=folder is not None,
                error_model="numpy",
                inline="always" if inline else "never",
            )
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
