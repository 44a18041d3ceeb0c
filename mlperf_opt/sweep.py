"""Many runs: their rows in one summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlperf_opt.records import Record, columns, to_row
from mlperf_opt.report import markdown, run_notes, sweep_grid, write_table, write_text


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its overrides and the rows that it left. A failed job's last row is INVALID and says why."""

    number: int
    overrides: tuple[str, ...]
    records: tuple[Record, ...]
    failure: str | None = None


def summary_rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return a row a job: its number, its overrides as columns of their own, and the columns of its last step."""
    keys = list(dict.fromkeys(_key(word) for job in jobs for word in job.overrides))
    rows = []
    for job in sorted(jobs, key=lambda job: job.number):
        given = {_key(word): word.partition("=")[2] for word in job.overrides}
        last = to_row(job.records[-1]) if job.records else dict.fromkeys(columns()) | {"status": "INVALID"}
        if job.failure is not None:
            last |= {"status": "INVALID", "reasons": job.failure}
        # A setting may be called like a column (`model`, `seed`); both are kept.
        overridden = {(f"override.{key}" if key in columns() else key): given.get(key) for key in keys}
        rows.append({"job": job.number, **overridden, **last})
    return rows


def write_summary(folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Write summary.csv and summary.md into ``folder`` and return the rows."""
    rows = summary_rows(jobs)
    write_table(folder / "summary.csv", rows)
    notes = run_notes([job.records[-1] for job in jobs if job.records])
    write_text(folder / "summary.md", markdown(sweep_grid(rows), f"{len(rows)} runs, the last step of each", notes))
    return rows


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
