"""What a run was measured on, without names of people, machines or folders."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import mlperf_opt
from mlperf_opt.settings import require

_CPU_INFO = Path("/proc/cpuinfo")
# The instruction sets that decide how fast float32, float16 and int8 arithmetic can be (x86, then Arm).
_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_DEPENDENCIES = (
    *("numpy", "hydra-core", "omegaconf", "pandas", "numba", "safetensors", "constriction", "threadpoolctl", "rich"),
    *("onnx", "onnxruntime"),
)


def describe_system() -> dict[str, Any]:
    """Return the machine and the software for run.json, as plain JSON data; what can't be found out is None."""
    model, flags = _cpu()
    return {
        "cpu": model,
        "cpu_flags": flags,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "mlperf_opt": mlperf_opt.__version__,
        "dependencies": {name: version for name in _DEPENDENCIES if (version := _version(name)) is not None},
        "blas": _thread_pools(),
        "git_commit": _git_commit(Path(mlperf_opt.__file__)),
    }


def fix_threads(n: int) -> Any:
    """Limit BLAS (and OpenMP) to ``n`` threads from now on; as a context manager, until its end.

    It reaches the libraries that are loaded: call it after numpy is imported.

    Raises:
        ConfigError: ``n`` is below 1.
    """
    from threadpoolctl import threadpool_limits

    require(n >= 1, "threads", n, "1 or more")
    return threadpool_limits(limits=n)


def _cpu() -> tuple[str | None, list[str]]:
    """Return the model's name and the flags of `_FLAGS` that the first core has."""
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None, []
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = set(fields.get("flags", fields.get("Features", "")).split())
    return fields.get("model name") or platform.processor() or None, [flag for flag in _FLAGS if flag in present]


def cpu_name() -> str | None:
    """Return the CPU's name, as the system gives it."""
    return _cpu()[0]


def cpu_flags() -> list[str]:
    """Return which of the instruction sets that matter here the CPU has, in the words of Linux; empty if it doesn't say."""
    return _cpu()[1]


@cache
def _version(name: str) -> str | None:
    """Return the version of an installed package; looking for it reads folders and files, and a sweep asks for each job."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _thread_pools() -> list[dict[str, Any]]:
    """Return the BLAS and OpenMP libraries in use with their threads, but not where they lie."""
    from threadpoolctl import threadpool_info

    keys = ("user_api", "internal_api", "version", "architecture", "threading_layer", "num_threads")
    return [{key: pool[key] for key in keys if key in pool} for pool in threadpool_info()]


def _git_commit(source: Path) -> str | None:
    """Return the commit of the checkout that ``source`` belongs to, with ``-dirty`` where it was edited; else None.

    An environment may lie inside somebody else's repository, so the file itself must be tracked.
    """
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    return _git(source.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
