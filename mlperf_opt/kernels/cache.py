"""Where compiled kernels are kept: in the user's cache, in a folder named after a hash of their sources.

numba's file cache notices a changed file, but not a changed file that it imports; so the folder is named after all of them.
It is the user's own folder and no other, for what lies in it is code.
"""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

from mlperf_opt.resources import user_cache


@cache
def cache_folder() -> Path | None:
    """Return the folder, one per version of the sources, of numba and of Python; None where there is no `user_cache`."""
    digest = hashlib.sha256(f"{version('numba')} {platform.python_version()}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    folder = user_cache()
    return folder and folder / digest.hexdigest()[:16]


@cache
def writable_folder() -> Path | None:
    """Return the folder, made if need be; None where it can't be written: kernels are then compiled in every process."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
