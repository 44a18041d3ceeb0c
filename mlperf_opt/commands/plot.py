"""``plot A B ... save=FILE``: error against bytes of runs and sweeps, beside published figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast, get_args

from mlperf_opt.errors import ConfigError
from mlperf_opt.extras import require_installed
from mlperf_opt.report import Format, draw, panels, read_results, save_path, write_bytes

if TYPE_CHECKING:
    from rich.console import Console

USAGE = "plot A [B ...] save=FILE.svg"


def run(arguments: list[str], console: Console) -> int:
    """Draw a picture and write it.

    Args:
        arguments: what follows ``plot`` on the command line: run folders, sweep folders, CSV files, and one ``save=FILE``.
        console: where to print.

    Returns:
        0.

    Raises:
        MlperfOptError: a wrong argument, matplotlib is missing, nothing to draw, or the file can't be written.
    """
    for word in arguments:
        if word.startswith("-"):
            raise ConfigError(f"plot: {word}: no such flag; expected {USAGE}")
    saves = [word.partition("=")[2] for word in arguments if word.startswith("save=")]
    sources = [word for word in arguments if not word.startswith("save=")]
    if len(saves) != 1 or not sources:
        raise ConfigError(f"plot: expected {USAGE}, with run folders, sweep folders or CSV files for A and B")
    path = save_path(saves[0], *(f".{kind}" for kind in get_args(Format)))
    results = read_results(sources)
    drawn = panels(results)
    require_installed("plot", "matplotlib")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, draw(drawn, cast(Format, path.suffix.lstrip("."))))
    points = sum(len(series.points) for panel in drawn for series in panel.series)
    for note in (note for result in results for note in result.notes):
        console.print(note, soft_wrap=True)
    console.print(f"{points} points of {len(results)} runs or sweeps written to {path}", soft_wrap=True)
    return 0
