"""Whether the packages of an extra are there: asked before any work, without importing them."""

from __future__ import annotations

from importlib.util import find_spec

from mlperf_opt.errors import ConfigError

_EXTRA_OF = {"onnx": "onnx", "onnxruntime": "onnx", "matplotlib": "report", "tokenizers": "text"}


def is_installed(package: str) -> bool:
    """Return whether ``package`` could be imported."""
    return find_spec(package) is not None


def require_installed(what: str, *packages: str) -> None:
    """Raise `ConfigError` unless the ``packages`` that ``what`` needs are installed; it names the extra to install."""
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        extras = sorted({_EXTRA_OF[package] for package in missing})
        raise ConfigError(f"{what} needs {' and '.join(missing)}: pip install 'mlperf-opt[{','.join(extras)}]'")
