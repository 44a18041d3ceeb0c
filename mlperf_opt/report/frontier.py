"""What a plot of error against bytes shows: points from metrics files, beside published ones. Drawing is `plot`'s part."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlperf_opt.errors import ConfigError
from mlperf_opt.report.results import Results, Row, by_job
from mlperf_opt.report.side_by_side import PROPORTIONS

_PUBLISHED = Path(__file__).with_name("published.csv")
_PUBLISHED_FOR = ("mnist", "test", "accuracy")  # the data, split and metric of every published figure


@dataclass(frozen=True)
class Point:
    """A model file: its bytes, and its loss with a 95 % interval (both ends equal to it where none is known).

    The loss is a percentage of wrong answers, or nats per token.
    """

    file_bytes: int
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """Points that belong together, in the order in which a line joins them."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """Series whose losses may be compared: of one model, data set, split and metric."""

    model: str
    data: str
    split: str
    metric: str
    series: tuple[Series, ...]
    published: tuple[Series, ...]


def panels(results: Sequence[Results]) -> list[Panel]:
    """Return the panels of a plot, in the order in which their models first come.

    Of a run every step is a point; of a sweep the last step of every job, in the order of the bytes. Rows that are INVALID,
    or whose quality or bytes weren't measured, are left out.

    Raises:
        ConfigError: nothing is left.
    """
    found: dict[tuple[str, str, str, str], list[Series]] = {}
    for result in results:
        jobs = by_job(result.frame)
        is_sweep = None not in jobs
        rows = [row for steps in jobs.values() for row in (steps[-1:] if is_sweep else steps) if _is_drawn(row)]
        for key in dict.fromkeys(_key(row) for row in rows):
            points = [_point(row) for row in rows if _key(row) == key]
            ordered = sorted(points, key=lambda point: point.file_bytes) if is_sweep else points
            found.setdefault(key, []).append(Series(result.name, tuple(ordered)))
    if not found:
        raise ConfigError(f"nothing to draw: no VALID row with a quality in {', '.join(result.name for result in results)}")
    return [Panel(*key, tuple(series), tuple(published(*key))) for key, series in found.items()]


def published(model: str, data: str, split: str, metric: str) -> list[Series]:
    """Return the figures that papers give for this model; ``published.csv`` says what their bytes count, and the source."""
    if (data, split, metric) != _PUBLISHED_FOR:
        return []
    points: dict[str, list[Point]] = {}
    with _PUBLISHED.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["model"] == model:
                loss = 100 * float(row["error"])
                points.setdefault(f"{row['method']} ({row['year']})", []).append(Point(int(row["bytes"]), loss, loss, loss))
    return [Series(name, tuple(found)) for name, found in points.items()]


def _is_drawn(row: Row) -> bool:
    return row["status"] == "VALID" and None not in (row["quality"], row["quality_metric"], row["file_bytes"])


def _key(row: Row) -> tuple[str, str, str, str]:
    return row["model"], row["data"], row["split"], row["quality_metric"]


def _point(row: Row) -> Point:
    low, high = (row[key] if row[key] is not None else row["quality"] for key in ("quality_low", "quality_high"))
    if row["quality_metric"] in PROPORTIONS:
        return Point(row["file_bytes"], *(100 * (1 - value) for value in (row["quality"], high, low)))
    return Point(row["file_bytes"], row["quality"], low, high)
