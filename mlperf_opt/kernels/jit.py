"""How kernels are compiled: once, when they are needed, and cached on disk (see `cache.py`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, TypeVar

import numba
from numba.core import config as _config

from mlperf_opt.kernels.cache import is_compiled, writable_folder

F = TypeVar("F", bound=Callable[..., Any])
_LOG = logging.getLogger(__name__)
config: Any = _config  # numba fills the module in when it is imported


def kernel(*signatures: str) -> Callable[[F], F]:
    """Decorate a function to be compiled, to run without the interpreter lock.

    Args:
        signatures: compile for these types when the module is imported (from the cache, where it is there already);
            none: when it is first called, which kernels that other kernels call want.
    """

    def decorate(function: F) -> F:
        with _cached() as cached:
            compiled: Any = numba.njit(
                list(signatures) or None, nogil=True, cache=cached and bool(signatures), error_model="numpy"
            )
            return compiled(function)

    return decorate


class operation:  # noqa: N801 - a decorator
    """A kernel that the machine calls by its address: (instruction, memories, rows), all int64, to one of `opcodes.py`.

    It is compiled, or read from the cache, when its address is first asked for: a program waits for its own kernels alone,
    and none is a part of another, which would be compiled with it again. That it takes long is logged, for whoever waits.
    """

    _told = False

    def __init__(self, function: Callable[[Any, Any, Any], int]) -> None:
        self._function = function

    @cached_property
    def compiled(self) -> Any:
        """The C function."""
        if not operation._told and not is_compiled(self._function):
            operation._told = True
            _LOG.info("compiling kernels: some seconds, once for each")
        with _cached() as cached:
            return numba.cfunc("int64(int64, int64, int64)", cache=cached, error_model="numpy")(self._function)

    @property
    def address(self) -> int:
        """Where it lies in memory."""
        return self.compiled.address


@contextmanager
def _cached() -> Iterator[bool]:
    """Let numba keep what is compiled in `writable_folder`, if there is one; a user's own settings come back after it."""
    theirs, folder = config.CACHE_DIR, writable_folder()
    config.CACHE_DIR = str(folder or theirs)
    try:
        yield folder is not None
    finally:
        config.CACHE_DIR = theirs


@cache
def features() -> frozenset[str]:
    """Return the features of the CPU that kernels are compiled for, by LLVM's names (``avx512vnni``)."""
    from numba.core.codegen import get_host_cpu_features

    text = config.CPU_FEATURES
    if text is None:
        text = "" if config.CPU_NAME else get_host_cpu_features()
    return frozenset(word[1:] for word in text.split(",") if word.startswith("+"))
