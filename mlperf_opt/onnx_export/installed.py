"""Whether the packages of the extra ``onnx`` are there: asked before any work, without importing them."""

from __future__ import annotations

from importlib.util import find_spec

from mlperf_opt.errors import ConfigError

_EXTRA = "pip install 'mlperf-opt[onnx]'"


def is_installed(package: str) -> bool:
    """Return whether ``package`` could be imported."""
    return find_spec(package) is not None


def require_installed(what: str, *packages: str) -> None:
    """Raise `ConfigError` unless the ``packages`` that ``what`` needs are installed; it names the extra to install."""
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise ConfigError(f"{what} needs {' and '.join(missing)}: {_EXTRA}")
