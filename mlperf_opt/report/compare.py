"""Two runs side by side: what changed, and whether the change is more than noise."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mlperf_opt.errors import ConfigError, did_you_mean
from mlperf_opt.measure import noise_factor
from mlperf_opt.report.grid import NOT_MEASURED, Grid, build_grid, duration, fraction, signed, size, times
from mlperf_opt.report.results import Row, by_job, rows_of

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["better", "worse", "within noise", "same"]
METRICS = ("quality", "weights_bytes", "file_bytes", "sparsity", "speedup", "latency_p50_us")
_TIMED = ("speedup", "latency_p50_us")
_TIMED_UNDER = ("runtime", "threads", "batch")
_SMALLER_IS_BETTER = ("weights_bytes", "file_bytes")
_EXPRESSION = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*")
_HOLDS = {
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
}
_FORMATS = {
    **dict.fromkeys(_SMALLER_IS_BETTER, size),
    "quality": fraction,
    "sparsity": fraction,
    "speedup": times,
    "latency_p50_us": duration,
}


@dataclass(frozen=True, kw_only=True)
class Delta:
    """One metric of one step on both sides.

    Attributes:
        step: which step, as far as needed to tell it from others: ``mlp/digits prune``, or ``job 2: mlp/digits prune``.
        metric: one of `METRICS`.
        before, after: the values, None where they weren't measured.
        delta: after - before; for quality positive is better, whatever its metric.
        ratio: after / before.
        verdict: None where nothing can be said.
        note: why not.
    """

    step: str
    metric: str
    before: float | None
    after: float | None
    delta: float | None = None
    ratio: float | None = None
    verdict: Verdict | None = None
    note: str = ""


def compare(before: pd.DataFrame, after: pd.DataFrame) -> list[Delta]:
    """Compare the steps that two metrics files have in common, by model, data and name.

    For a model of which no step's name is in common, the last steps are compared. In sweeps (a column ``job``) the jobs
    of one number are compared; a sweep against a run compares each job with the run.

    Quality is judged by the normal approximation of the difference of two proportions, or of two means of nats, its variance
    from the widths of their intervals; both count the same samples, so it errs towards "within noise". Sizes and sparsity
    are exact. A speedup differs if the ratio of the two passes the noise of both runs and their intervals don't overlap. A
    latency gets no verdict: two runs were never timed side by side.

    Raises:
        ConfigError: no model in common, or one side has a step twice.
    """
    pairs = list(_pairs(before, after))
    if not pairs:
        raise ConfigError(f"nothing to compare: one side has {_models(before)}, the other {_models(after)}")
    return [_delta(step, metric, old, new) for step, old, new in pairs for metric in METRICS]


def unmatched(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """Return a line for each side's steps that `compare` leaves out, none where every step has its partner."""
    lines = []
    used = list(_pairs(before, after))
    for side, frame, place in (("first", before, 0), ("second", after, 1)):
        taken = {_key(rows[place]) for _, *rows in used}
        left: dict[str, list[str]] = {}
        for row in (row for row in rows_of(frame) if _key(row) not in taken):
            left.setdefault(f"{_label(row.get('job'))}{row['model']}", []).append(row["name"])
        facts = "; ".join(f"{model} {', '.join(names)}" for model, names in left.items())
        lines += [f"only on the {side} side: {facts}"] if facts else []
    return lines


def changed_settings(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """Return a line for each compared step whose pass was set otherwise on the two sides: what the change comes from."""
    lines = []
    for step, old, new in _pairs(before, after):
        first, second = _settings(old), _settings(new)
        if old["pass"] == new["pass"]:
            keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
            facts = [f"{key} {first.get(key)} and {second.get(key)}" for key in keys]
            lines += [f"{step}: {', '.join(facts)}"] if facts else []
    return lines


def fail_on(expression: str, deltas: Sequence[Delta]) -> list[str]:
    """Return a line for each step for which ``expression`` holds, such as ``quality_delta<-0.01``.

    A value that the first side has and that can't be checked (not measured on the second, or not comparable) is
    returned as well: a gate must not open because a measurement is lost.

    Args:
        expression: ``<metric>_delta`` or ``<metric>_ratio``, one of < <= > >=, a number.
        deltas: from `compare`.

    Raises:
        ConfigError: it can't be parsed, an unknown name, or no step has the metric at all.
    """
    match = _EXPRESSION.fullmatch(expression)
    if not match:
        raise ConfigError(f"--fail-on {expression}: expected a name, one of < <= > >=, and a number: quality_delta<-0.01")
    name, sign, limit = match[1], match[2], float(match[3])
    names = [f"{metric}_{kind}" for metric in METRICS for kind in ("delta", "ratio")]
    if name not in names:
        raise ConfigError(f"--fail-on {expression}: unknown name {name!r}{did_you_mean(name, names)}")
    metric, _, kind = name.rpartition("_")
    found = [delta for delta in deltas if delta.metric == metric and delta.before is not None]
    if not found:
        raise ConfigError(f"--fail-on {expression}: nothing to check, {metric} was not measured on the first side")
    lines = []
    for delta in found:
        value = delta.delta if kind == "delta" else delta.ratio
        if value is None:
            lines.append(f"{delta.step}: {name} can't be checked: {delta.note or 'the first side is 0'}")
        elif _HOLDS[sign](value, limit):
            lines.append(f"{delta.step}: {name} = {value:.6g}, and {sign} {limit:g} was to fail")
    return lines


def compare_grid(deltas: Sequence[Delta]) -> Grid:
    """Return the table of a comparison; a metric that neither side measured is left out."""
    cells = []
    shown = ""
    for delta in deltas:
        if delta.before is None and delta.after is None:
            continue
        form = _FORMATS[delta.metric]
        cells.append(
            {
                "step": "" if delta.step == shown else delta.step,
                "metric": delta.metric,
                "before": form(delta.before),
                "after": form(delta.after),
                "change": _change(delta),
                "ratio": fraction(delta.ratio),
                "verdict": delta.verdict or NOT_MEASURED,
            }
        )
        shown = delta.step
    return build_grid(cells, left=("step", "metric", "verdict"))


def _change(delta: Delta) -> str:
    """The difference in the unit of the metric, with its sign; sizes and times keep theirs in front."""
    if delta.delta is None or delta.metric not in (*_SMALLER_IS_BETTER, "latency_p50_us"):
        return signed(delta.delta)
    sign = "-" if delta.delta < 0 else "+" if delta.delta > 0 else ""
    return f"{sign}{_FORMATS[delta.metric](abs(delta.delta))}"


def _pairs(before: pd.DataFrame, after: pd.DataFrame) -> Iterator[tuple[str, Row, Row]]:
    """Yield (step, row before, row after)."""
    first, second = by_job(before), by_job(after)
    for old_job, old_rows in first.items():
        for new_job, new_rows in second.items():
            if old_job == new_job or None in (old_job, new_job):
                job = old_job if old_job is not None else new_job
                for step, old, new in _pairs_of_job(old_rows, new_rows):
                    yield f"{_label(job)}{step}", old, new


def _pairs_of_job(first: list[Row], second: list[Row]) -> Iterator[tuple[str, Row, Row]]:
    old_steps, new_steps = _by_name(first), _by_name(second)
    for model, old in old_steps.items():
        new = new_steps.get(model, {})
        common = [name for name in old if name in new]
        for name in common:
            yield f"{'/'.join(model)} {name}", old[name], new[name]
        if new and not common:
            (old_name, old_row), (new_name, new_row) = list(old.items())[-1], list(new.items())[-1]
            yield f"{'/'.join(model)} {old_name} -> {new_name}", old_row, new_row


def _settings(row: Row) -> dict[str, Any]:
    """The settings of a step; a text that somebody else wrote into the column stands for itself."""
    try:
        settings = json.loads(row["settings"] or "{}")
    except ValueError:
        settings = row["settings"]
    return settings if isinstance(settings, dict) else {"settings": settings}


def _label(job: Any) -> str:
    return "" if job is None else f"job {job}: "


def _key(row: Row) -> tuple[Any, ...]:
    return row.get("job"), row["model"], row["data"], row["name"]


def _by_name(rows: list[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """Return (model, data) -> name -> row."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        steps = found.setdefault((row["model"], row["data"]), {})
        if row["name"] in steps:
            raise ConfigError(f"{row['model']} {row['name']} stands there twice: compare one run with one run")
        steps[row["name"]] = row
    return found


def _models(frame: pd.DataFrame) -> str:
    names = {
        f"{row['model']} on {row['data']}" + (f" (job {row['job']})" if row.get("job") else "") for row in rows_of(frame)
    }
    return ", ".join(sorted(names))


def _delta(step: str, metric: str, old: Row, new: Row) -> Delta:
    before, after = old[metric], new[metric]
    plain = Delta(step=step, metric=metric, before=before, after=after)
    if before is None or after is None:
        note = "" if before is after else f"not measured on the {'second' if after is None else 'first'} side"
        return replace(plain, note=note)
    if metric in _TIMED:
        other = [f"{key} {old[key]} and {new[key]}" for key in _TIMED_UNDER if old[key] != new[key]]
        if other:
            return replace(plain, note=f"timed differently: {', '.join(other)}")
    if metric == "quality" and old["split"] != new["split"]:
        return replace(plain, note=f"counted on different splits: {old['split']} and {new['split']}")
    if metric == "quality" and old["quality_metric"] != new["quality_metric"]:
        return replace(plain, note=f"different metrics: {old['quality_metric']} and {new['quality_metric']}")
    difference = after - before
    if metric == "quality" and old["quality_metric"] == "nats_per_token":
        difference = -difference
    ratio = after / before if before else None
    return replace(plain, delta=difference, ratio=ratio, verdict=_verdict(metric, difference, old, new))


def _verdict(metric: str, difference: float, old: Row, new: Row) -> Verdict | None:
    if metric == "latency_p50_us":
        return None
    if difference == 0:
        return "same"
    if metric == "quality":
        real = _quality_differs(difference, old, new)
    elif metric == "speedup":
        real = _speed_differs(old, new)
    else:
        real = True
    if real is None:
        return None
    better = difference > 0 if metric not in _SMALLER_IS_BETTER else difference < 0
    return "within noise" if not real else "better" if better else "worse"


def _quality_differs(difference: float, old: Row, new: Row) -> bool | None:
    halves = []
    for row in (old, new):
        if row["quality_low"] is None or row["quality_high"] is None:
            return None
        halves.append((row["quality_high"] - row["quality_low"]) / 2)
    return abs(difference) > math.hypot(*halves)


def _speed_differs(old: Row, new: Row) -> bool | None:
    factors = []
    for row in (old, new):
        if any(row[key] is None for key in ("speedup_low", "speedup_high", "noise_low", "noise_high")):
            return None
        factors.append(noise_factor(row["noise_low"], row["noise_high"]))
    ratio = new["speedup"] / old["speedup"]
    apart = new["speedup_low"] > old["speedup_high"] or new["speedup_high"] < old["speedup_low"]
    return apart and max(ratio, 1 / ratio) > max(factors)
