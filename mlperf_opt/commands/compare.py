"""``compare A B ...``: where runs, sweeps or CSV files ended, side by side; of two, what changed, with a verdict each."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from mlperf_opt.errors import ConfigError
from mlperf_opt.report import (
    Delta,
    changed_settings,
    compare,
    compare_grid,
    fail_on,
    read_results,
    side_by_side,
    to_rich,
    unmatched,
)

if TYPE_CHECKING:
    from rich.console import Console

HELP = "compare runs, sweeps or metrics files side by side; two of them also step by step, deltas with a verdict"
_MEANING = "± half the width of the 95 % interval; smaller and speedup: against the run's own baseline."
_EPILOG = (
    "EXPR is <metric>_delta or <metric>_ratio, one of < <= > >=, and a number: quality_delta<-0.01, weights_bytes_ratio>1. "
    "Quote it: the shell reads < and > otherwise. Every run behind the first is held against the first."
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
    if len(options.results) < 2:
        raise ConfigError("compare: expected two or more run folders, sweep folders or CSV files: compare A B ...")
    first, *others = read_results(options.results)
    failed = []
    notes = [note for result in (first, *others) for note in result.notes]
    tables = [side_by_side([first, *others])]
    for other in others if len(others) == 1 or options.fail_on else ():
        deltas = compare(first.frame, other.frame)
        where = "" if len(others) == 1 else f"{other.name}: "
        failed += [f"--fail-on {text}: {where}{line}" for text in options.fail_on for line in fail_on(text, deltas)]
        if len(others) == 1:
            tables.append(compare_grid(deltas))
            notes += [*unmatched(first.frame, other.frame), *_notes(deltas)]
            notes += [f"set otherwise: {line}" for line in changed_settings(first.frame, other.frame)]
    for table in tables:
        console.print(to_rich(table))
        console.print()
    for line in [_MEANING, *notes, *failed]:
        _print(console, line)
    return 1 if failed else 0


class _Parser(argparse.ArgumentParser):
    """argparse that reports a mistake like the rest of the program: one line, raised."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"compare: {message}")


def _parser() -> _Parser:
    usage = "mlperf_opt compare A B [C ...] [--fail-on EXPR]..."
    parser = _Parser(usage=usage, description=HELP, epilog=_EPILOG, add_help=False, allow_abbrev=False)
    parser.add_argument("results", metavar="A B", nargs="*", help="run folder, sweep folder or metrics.csv")
    parser.add_argument("--fail-on", metavar="EXPR", action="append", default=[], help="exit 1 if it holds for a step")
    parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    return parser


def _notes(deltas: list[Delta]) -> list[str]:
    """Each reason once, with the steps that it concerns."""
    steps: dict[str, list[str]] = {}
    for delta in deltas:
        if delta.note:
            steps.setdefault(f"{delta.metric}: {delta.note}", []).append(delta.step)
    return [f"{note} ({', '.join(names)})" for note, names in steps.items()]


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
