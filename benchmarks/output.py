"""How a benchmark begins and ends: its words checked, its tables on one screen or as Markdown, its figures in a file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from windows import CLOCKS

from mlperf_opt.measure import describe_system
from mlperf_opt.report.grid import Grid, markdown, to_rich

_PEERS = ("numpy", "numba", "onnxruntime", "torch")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like those of the main command."""

    def error(self, message: str) -> Any:
        """Say it on stderr and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parser(description: str | None) -> Parser:
    """Return a parser with the options that all benchmarks have."""
    made = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    made.add_argument("--seconds", type=positive, metavar="S", help="time for each comparison")
    made.add_argument("--short", action="store_true", help="a quarter of the time, and fewer cases")
    made.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a busy machine, one thread only")
    made.add_argument("--json", type=writable, metavar="PATH", help="keep the figures and a description of the machine")
    made.add_argument("--markdown", action="store_true", help="print the tables as Markdown, for docs/results.md")
    return made


def positive(word: str) -> float:
    """Seconds: a number above 0, at most an hour."""
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{word}: expected a number above 0, at most 3600")
    return value


def whole(word: str) -> int:
    """A whole number of at least 1."""
    if not (word.isascii() and word.isdigit() and int(word) >= 1):
        raise argparse.ArgumentTypeError(f"{word}: expected a whole number of at least 1")
    return int(word)


def writable(word: str) -> Path:
    """A path that a file can be written to: refused before the work, not after it."""
    path = Path(word)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{word}: no file can be written there")
    return path


def progress(line: str) -> None:
    """Tell whoever waits, on stderr; on a terminal each line takes the place of the one before."""
    end = "\r" if sys.stderr.isatty() else "\n"
    sys.stderr.write(f"{line:<99.99}{end}" if end == "\r" else f"{line}{end}")
    sys.stderr.flush()


def machine_line(system: dict[str, Any]) -> str:
    """The machine and the versions that figures belong to; ``system`` is that of `system_facts`."""
    versions = ", ".join(f"{name} {version}" for name, version in system["versions"].items())
    load = system["load_average"][0] if system["load_average"] else float("nan")
    kinds = [flag for flag in ("avx512_vnni", "amx_int8") if flag in system["cpu_flags"]]
    return f"{system['cpu']} ({', '.join(kinds) or 'no VNNI'}), {system['cores']} cores, load {load:.1f}; {versions}"


def system_facts() -> dict[str, Any]:
    """`describe_system`, and the versions of the peers."""
    versions = {}
    for name in _PEERS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**describe_system(), "versions": versions}


def conditions(system: dict[str, Any], clock: str) -> list[str]:
    """What a reader must know of how the figures came about, where it isn't as it should be."""
    notes = ["times are those of the CPU, not of a clock on the wall"] if clock == "cpu" else []
    load, cores = (system["load_average"] or [0.0])[0], system["usable_cores"] or 1
    if load > cores:
        notes.append(f"the machine was busy, load {load:.1f} on {cores} cores: trust ratios of one thread, by --clock cpu")
    return notes


def show(system: dict[str, Any], tables: Sequence[tuple[str, Grid]], notes: Sequence[str], *, as_markdown: bool) -> None:
    """Print titled tables and the notes below them."""
    if as_markdown:
        print(f"{machine_line(system)}.\n")
        for title, grid in tables:
            print("##" + markdown(grid, title, ()).strip() + "\n")
        print("\n".join(f"- {note}" for note in notes))
        return
    from rich.console import Console

    console = Console(width=100, markup=False, highlight=False, emoji=False)
    console.print(machine_line(system), soft_wrap=True)
    for title, grid in tables:
        console.print(f"\n{title}", style="bold")
        console.print(to_rich(grid))
    for note in notes:
        console.print(note, soft_wrap=True)


def keep(path: Path | None, system: dict[str, Any], figures: dict[str, Any]) -> None:
    """Write the figures as JSON, where a path is given."""
    if path is not None:
        path.write_text(json.dumps({"system": system, **figures}, indent=1) + "\n", encoding="utf-8")
