"""Several runs in one table: where each of them ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlperf_opt.report.grid import NOT_MEASURED, Grid, build_grid, duration, measured, size, times, with_interval
from mlperf_opt.report.results import Results, Row, by_job
from mlperf_opt.report.table import speedup_text, status_text

PROPORTIONS = frozenset(("accuracy", "exact_match"))
_CONDITIONS = ("model", "data", "split", "runtime", "threads", "batch")  # shown where they aren't the same for all


def side_by_side(results: Sequence[Results]) -> Grid:
    """Return a row for the last step of each run and of each job of a sweep.

    The error is 1 - quality where that is a proportion. Bytes are those of the whole file; smaller and speedup are against
    the baseline of the row's own run, so they can be read beside each other where the baselines are the same.
    """
    ends = [(_label(result.name, job), rows[-1]) for result in results for job, rows in by_job(result.frame).items()]
    rows = [row for _, row in ends]
    lost = _header(rows)
    tokens = any(row["token_us"] is not None for row in rows)
    differing = [key for key in _CONDITIONS if len({row[key] for row in rows}) > 1]
    cells = []
    for name, row in ends:
        line = {"run": name}
        line |= {key: str(row[key]) for key in differing}
        line["last step"] = f"{row['step']} {row['name']}"
        line[lost] = _loss(row, lost.endswith("error"))
        line["file"] = size(row["file_bytes"])
        line["smaller"] = times(None if row["file_ratio"] is None else 1 / row["file_ratio"])
        line["token" if tokens else "p50"] = duration(row["token_us" if tokens else "latency_p50_us"])
        line["speedup"] = speedup_text(row)
        line["status"] = status_text(row)
        cells.append(line)
    return build_grid(cells, left=("run", *_CONDITIONS, "last step", "status"))


def _label(name: str, job: Any) -> str:
    return name if job is None else f"{name} job {job}"


def _header(rows: Sequence[Row]) -> str:
    metrics = {row["quality_metric"] for row in rows if row["quality_metric"] is not None}
    name = "error" if metrics <= PROPORTIONS else "nats/token" if metrics == {"nats_per_token"} else "quality"
    return f"calibration\n{name}" if {row["split"] for row in rows} == {"calibration"} else name


def _loss(row: Row, as_error: bool) -> str:
    if not measured(row["quality"]):
        return NOT_MEASURED
    value = 1 - row["quality"] if as_error else row["quality"]
    return with_interval(f"{value:.4f}", row["quality_low"], row["quality_high"], 4)
