"""How kernels are compiled: once, when they are needed, and kept on disk (see `cache.py`)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeVar

import numba
from numba.core import config as _config
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from mlperf_opt.kernels.cache import writable_folder

F = TypeVar("F", bound=Callable[..., Any])
config: Any = _config  # numba fills the module in when it is imported
_LOG = logging.getLogger(__name__)
_LOCK = threading.RLock()  # one thread compiles, the others wait for what it leaves


def kernel(*signatures: str, inline: bool = False) -> Callable[[F], F]:
    """Decorate a function to be compiled, to run without the interpreter lock.

    Args:
        signatures: compile for these types when the module is imported (from the cache, where it is there already);
            none: when it is first called, which kernels that other kernels call want.
        inline: be written out in whoever calls it, before anything is typed: a function can be an argument then, and
            what constant arguments rule out is not compiled.
    """

    def decorate(function: F) -> F:
        written_out = "always" if inline else "never"
        compiled: Any = numba.njit(nogil=True, error_model="numpy", inline=written_out)(function)
        if signatures and not config.DISABLE_JIT:  # else it is the function itself
            _use_cache(compiled)
            for signature in signatures:
                _load(compiled, signature)
            compiled.disable_compile()
        return compiled

    return decorate


class Operation:
    """A kernel that the machine calls by its address: (instruction, memories, rows), all int64, to one of `opcodes.py`.

    It is compiled, or read from the cache, when a program first needs it: whoever runs a program waits for its own kernels
    alone, and none is a part of another, which would be compiled with it again.

    Attributes:
        leaves_to: the opcode that it may return instead of doing the work, None for none.
        compiled: the C function, None as long as nobody needed it.
    """

    def __init__(self, function: Callable[[Any, Any, Any], int], leaves_to: int | None) -> None:
        self.leaves_to = leaves_to
        self.compiled: Any = None
        self._function = function

    def ready(self, tell: Callable[[], None]) -> int:
        """Return its address; ``tell`` is called before it is compiled."""
        if self.compiled is None:
            compiled = _Native(self._function, tell)
            _use_cache(compiled)
            _load(compiled)
            self.compiled = compiled
        return self.compiled.address


def operation(*, leaves_to: int | None = None) -> Callable[[Callable[[Any, Any, Any], int]], Operation]:
    """Decorate a function to be an `Operation`."""
    return lambda function: Operation(function, leaves_to)


def addresses(operations: Iterable[Operation]) -> list[int]:
    """Return where they lie in memory. That some have to be compiled first is logged, once, for whoever waits."""
    told: list[bool] = []

    def tell() -> None:
        if not told:
            _LOG.info("compiling kernels of the compiled runtime: some seconds, kept for the next time")
            told.append(True)

    with _LOCK:
        return [each.ready(tell) for each in operations]


class _Native(CFunc):
    """A C function of an `Operation`."""

    def __init__(self, function: Callable[[Any, Any, Any], int], tell: Callable[[], None]) -> None:
        signature = normalize_signature("int64(int64, int64, int64)")
        super().__init__(function, signature, locals={}, options={"error_model": "numpy"})
        self._tell = tell

    def _compile_uncached(self) -> Any:
        self._tell()
        return super()._compile_uncached()  # type: ignore[attr-defined] - numba has no types


def _use_cache(compiled: Any) -> None:
    """Let numba keep a function in `writable_folder`, if there is one; a user's own functions stay where they are."""
    folder = writable_folder()
    if folder is not None:
        with _LOCK:
            theirs, config.CACHE_DIR = config.CACHE_DIR, str(folder)
            try:
                compiled.enable_caching()
            finally:
                config.CACHE_DIR = theirs


def _load(compiled: Any, *signature: str) -> None:
    """Read a function from the cache, or compile it."""
    try:
        compiled.compile(*signature)
    except Exception:  # whatever a damaged file makes of reading it; a mistake of ours comes again
        compiled._cache.flush()
        compiled.compile(*signature)


@cache
def features() -> frozenset[str]:
    """Return the features of the CPU that kernels are compiled for, by LLVM's names (``avx512vnni``)."""
    from numba.core.codegen import get_host_cpu_features

    text = config.CPU_FEATURES
    if text is None:
        text = "" if config.CPU_NAME else get_host_cpu_features()
    return frozenset(word[1:] for word in text.split(",") if word.startswith("+"))
