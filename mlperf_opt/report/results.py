"""What earlier commands left: a run folder, a sweep folder or a CSV file -> rows, and a name for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlperf_opt.errors import ConfigError
from mlperf_opt.report.csv_files import read_metrics
from mlperf_opt.report.grid import measured

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Results:
    """The rows of one run, or of all jobs of one sweep.

    Attributes:
        name: what tells it from the others that were read with it: the folder's name where that is enough.
        frame: the columns of metrics.csv; of a sweep, also ``job``.
        notes: what is missing, a line each.
    """

    name: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def read_results(arguments: Sequence[str]) -> list[Results]:
    """Read the runs, sweeps or CSV files that a command line names.

    Raises:
        ConfigError: one is missing, or holds no metrics.csv of this version.
    """
    paths = [Path(argument) for argument in arguments]
    for argument, path in zip(arguments, paths, strict=True):
        if not argument or not path.exists():
            raise ConfigError(f"no such file or folder: {argument!r}")
    return [Results(name, *_read(path)) for name, path in zip(_names(paths), paths, strict=True)]


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """Return the rows as plain mappings, None for what wasn't measured."""
    return [
        {str(key): value if measured(value) else None for key, value in row.items()}
        for row in frame.to_dict(orient="records")
    ]


def by_job(frame: pd.DataFrame) -> dict[Any, list[Row]]:
    """Return job -> its rows in the order of the steps; a run is the one job None."""
    jobs: dict[Any, list[Row]] = {}
    for row in rows_of(frame):
        jobs.setdefault(row.get("job"), []).append(row)
    return jobs


def _names(paths: Sequence[Path]) -> list[str]:
    """Return as much of the ends of the paths as tells them apart; a run's metrics.csv is called like its folder."""
    whole = [path.resolve() for path in paths]
    whole = [path.parent if path.name == "metrics.csv" else path for path in whole]
    tails: list[str] = []
    for length in range(1, max(len(path.parts) for path in whole) + 1):
        tails = ["/".join(path.parts[-length:]) for path in whole]
        if len(set(tails)) == len(set(whole)):
            break
    return tails


def _read(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    if path.is_file():
        return read_metrics(path), ()
    if (path / "metrics.csv").is_file():
        return read_metrics(path / "metrics.csv"), ()
    if (path / "summary.csv").is_file():
        return _read_sweep(path)
    raise ConfigError(f"{path} has no metrics.csv (a run) and no summary.csv (a sweep)")


def _read_sweep(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    import pandas as pd

    jobs = sorted(
        (folder for folder in path.iterdir() if folder.is_dir() and folder.name.isdecimal()), key=lambda f: int(f.name)
    )
    frames = [read_metrics(job / "metrics.csv").assign(job=job.name) for job in jobs if (job / "metrics.csv").is_file()]
    if not frames:
        raise ConfigError(f"{path} is a sweep without a job that has a metrics.csv")
    lost = [job.name for job in jobs if not (job / "metrics.csv").is_file()]
    return pd.concat(frames, ignore_index=True), (f"{path}: no metrics.csv in job {', '.join(lost)}",) if lost else ()
