"""The one place that writes a report's file: whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from mlperf_opt.errors import ConfigError, MlperfOptError


def save_path(save: object, *endings: str) -> Path:
    """Return the path that ``save=...`` names, if a file can be written there; folders may be missing yet.

    Raises:
        ConfigError: it is no text, has another ending, names a folder, or lies where nothing can be written.
    """
    if not isinstance(save, str) or not save:
        raise ConfigError(f"save={save}: expected a path")
    path = Path(save)
    if path.suffix not in endings or path.is_dir():
        raise ConfigError(f"save={save}: expected the path of a file that ends in {' or '.join(endings)}")
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        raise ConfigError(f"save={save}: {folder} is a file, expected a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):  # what the system says now, it would say after hours of work
            return path
    except OSError as error:
        raise ConfigError(f"save={save}: cannot write into {folder}: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary name beside ``path`` and rename it: no reader ever sees half a file.

    Raises:
        MlperfOptError: it can't be written (disk full, no permission, no such folder); an old file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # "x" so that the file gets the user's usual permissions, which mkstemp would narrow
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise MlperfOptError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        # after the rename there is nothing left under this name
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON, in the order of its keys.

    Raises:
        MlperfOptError: it can't be written.
        ValueError: a number is NaN or infinite, which JSON has no word for.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
