"""``compare A B``: what changed between two runs, two sweeps or two CSV files, with a verdict each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mlperf_opt.errors import ConfigError
from mlperf_opt.report.compare import Delta, changed_settings, compare, compare_grid, fail_on, unmatched
from mlperf_opt.report.csv_files import read_metrics
from mlperf_opt.report.grid import to_rich

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

HELP = "compare two runs, sweeps or metrics files: deltas with a verdict; exit 1 with --fail-on"
_EPILOG = (
    "EXPR is <metric>_delta or <metric>_ratio, one of < <= > >=, and a number: quality_delta<-0.01, weights_bytes_ratio>1. "
    "Quote it: the shell reads < and > otherwise."
)


def run(arguments: list[str], console: Console) -> int:
    """Compare and print.

    Args:
        arguments: what follows ``compare`` on the command line.
        console: where to print.

    Returns:
        1 if a ``--fail-on`` holds for some step, else 0.

    Raises:
        ConfigError: wrong arguments, a file that is missing or not a metrics.csv, nothing in common.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.help:
        _print(console, parser.format_help())
        return 0
    if options.before is None or options.after is None:
        raise ConfigError("compare: expected two run folders, sweep folders or CSV files: compare A B")
    before, first_notes = _load(options.before)
    after, second_notes = _load(options.after)
    deltas = compare(before, after)
    failed = [f"--fail-on {expression}: {line}" for expression in options.fail_on for line in fail_on(expression, deltas)]
    console.print(to_rich(compare_grid(deltas)))
    notes = [*first_notes, *second_notes, *unmatched(before, after), *_notes(deltas)]
    notes += [f"set otherwise: {line}" for line in changed_settings(before, after)]
    for line in ["", *notes, *failed]:
        _print(console, line)
    return 1 if failed else 0


class _Parser(argparse.ArgumentParser):
    """argparse that reports a mistake like the rest of the program: one line, raised."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"compare: {message}")


def _parser() -> _Parser:
    usage = "mlperf_opt compare A B [--fail-on EXPR]..."
    parser = _Parser(usage=usage, description=HELP, epilog=_EPILOG, add_help=False, allow_abbrev=False)
    parser.add_argument("before", metavar="A", nargs="?", help="run folder, sweep folder or metrics.csv")
    parser.add_argument("after", metavar="B", nargs="?", help="the same, to compare with A")
    parser.add_argument("--fail-on", metavar="EXPR", action="append", default=[], help="exit 1 if it holds for a step")
    parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    return parser


def _load(argument: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of a run, a sweep or a file, and notes about what is missing."""
    path = Path(argument)
    if not argument or not path.exists():
        raise ConfigError(f"compare: no such file or folder: {argument!r}")
    if path.is_file():
        return read_metrics(path), []
    if (path / "metrics.csv").is_file():
        return read_metrics(path / "metrics.csv"), []
    if (path / "summary.csv").is_file():
        return _load_sweep(path)
    raise ConfigError(f"compare: {path} has no metrics.csv (a run) and no summary.csv (a sweep)")


def _load_sweep(path: Path) -> tuple[pd.DataFrame, list[str]]:
    import pandas as pd

    jobs = sorted(
        (folder for folder in path.iterdir() if folder.is_dir() and folder.name.isdecimal()), key=lambda f: int(f.name)
    )
    frames = [read_metrics(job / "metrics.csv").assign(job=job.name) for job in jobs if (job / "metrics.csv").is_file()]
    if not frames:
        raise ConfigError(f"compare: {path} is a sweep without a job that has a metrics.csv")
    lost = [job.name for job in jobs if not (job / "metrics.csv").is_file()]
    return pd.concat(frames, ignore_index=True), [f"{path}: no metrics.csv in job {', '.join(lost)}"] if lost else []


def _notes(deltas: list[Delta]) -> list[str]:
    """Each reason once, with the steps that it concerns."""
    steps: dict[str, list[str]] = {}
    for delta in deltas:
        if delta.note:
            steps.setdefault(f"{delta.metric}: {delta.note}", []).append(delta.step)
    return [f"{note} ({', '.join(names)})" for note, names in steps.items()]


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
