"""Where the folders of data that belong to the package lie (conf/, models/, pipelines/), and the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from mlperf_opt.errors import ConfigError

# A folder is ours only if it holds this file with this text: a `conf` or `models` package of someone else that
# lies beside the installed package (site-packages is shared) is never taken for ours.
_MARKER = ".mlperf_opt"
_MARKER_TEXT = "resource folder of mlperf_opt"
_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """Return the folder ``name`` (``conf``, ``models`` or ``pipelines``).

    A wheel carries the folder inside the package; in a checkout and in an editable install it stands beside it.

    Raises:
        ConfigError: neither place holds the folder with its marker file (a damaged installation).
    """
    for parent in (_PACKAGE, _PACKAGE.parent):
        marker = parent / name / _MARKER
        if marker.is_file() and marker.read_text(encoding="utf-8").strip() == _MARKER_TEXT:
            return parent / name
    raise ConfigError(
        f"the installation is incomplete: no folder {name!r} in or beside {_PACKAGE}; install mlperf_opt again"
    )


def user_cache() -> Path | None:
    """Return the folder of what may be made again: below XDG_CACHE_HOME or ~/.cache, the user's own and nobody else's.

    A relative XDG_CACHE_HOME is ignored, as its specification says; None where there is no home either.
    """
    wanted = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = wanted if wanted.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "mlperf_opt"
