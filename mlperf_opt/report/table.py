"""The tables that a run, a sweep and a profile show: at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlperf_opt.measure import noise_factor, verdict
from mlperf_opt.records import Record, columns, to_row
from mlperf_opt.report.grid import (
    NOT_MEASURED,
    Grid,
    build_grid,
    count,
    duration,
    fraction,
    measured,
    signed,
    size,
    times,
    to_rich,
    with_interval,
)

if TYPE_CHECKING:
    from rich.table import Table

_QUALITY_HEADERS = {"accuracy": "accuracy", "exact_match": "exact match", "nats_per_token": "nats/token"}
_MOST_PLAN_NOTES = 8
_BAR = 10  # characters for a share of 100 %


def run_grid(records: Sequence[Record]) -> Grid:
    """Return the table of a run, one row a step."""
    rows = [to_row(record) for record in records]
    quality = _quality_header(rows)
    passes = any(row["pass"] != row["name"] for row in rows)
    tokens = any(measured(row["token_us"]) for row in rows)
    cells = []
    for row in rows:
        line = {"step": f"{row['step']} {row['name']}"}
        if passes:
            line["pass"] = NOT_MEASURED if row["pass"] == row["name"] else str(row["pass"])
        line[quality] = with_interval(fraction(row["quality"]), row["quality_low"], row["quality_high"], 3)
        line["change"] = signed(row["quality_delta"])
        line["weights"] = size(row["weights_bytes"])
        line["ratio"] = fraction(row["weights_ratio"])
        line["token" if tokens else "p50"] = duration(row["token_us" if tokens else "latency_p50_us"])
        line["speedup"] = speedup_text(row)
        line["status"] = status_text(row)
        cells.append(line)
    return build_grid(cells, left=("step", "pass", "status"))


def run_table(records: Sequence[Record]) -> Table:
    """Return `run_grid` for the terminal."""
    return to_rich(run_grid(records))


def run_notes(records: Sequence[Record]) -> list[str]:
    """Return the lines below the table: what its columns mean, the noise, and why a row is INVALID or incomplete."""
    if not records:
        return []
    notes = [
        "± half the width of the 95 % interval; change, ratio and speedup: against the baseline; weights: all bytes that "
        "the file needs for them."
    ]
    factors = [
        noise_factor(r.noise_low, r.noise_high) for r in records if r.noise_low is not None and r.noise_high is not None
    ]
    if factors:
        notes.append(
            f"noise: no difference is claimed within a factor of {max(factors):.2f} "
            "(the baseline against itself, at least 2 %)."
        )
    if any(record.quality_ok is False for record in records):
        notes.append(
            "worse: the quality fell by more than measure.max_drop; the number is VALID, the model may not be for you."
        )
    valid = [record.reasons.split("; ") for record in records if record.reasons and record.status == "VALID"]
    shared = [reason for reason in valid[0] if all(reason in of for of in valid)] if len(valid) == len(records) > 1 else []
    for record in records:
        own = [reason for reason in record.reasons.split("; ") if reason not in shared]
        if any(own) or record.status != "VALID":
            status = "" if record.status == "VALID" else f"{record.status}: "
            notes.append(f"{record.step} {record.name}: {status}{'; '.join(own) or 'no reason given'}")
    notes += [f"all rows: {reason}" for reason in shared]
    return notes + _plan_notes(records)


def _plan_notes(records: Sequence[Record]) -> list[str]:
    """Return a line for each thing that the runtime decided, with the steps that it holds for."""
    steps: dict[str, list[str]] = {}
    for record in records:
        for note in record.plan.split("; ") if record.plan else ():
            steps.setdefault(note, []).append(f"{record.step} {record.name}")
    lines = [f"{', '.join(names)}, {note}" for note, names in steps.items()]
    if len(lines) > _MOST_PLAN_NOTES:
        rest = len(lines) - _MOST_PLAN_NOTES + 1
        lines[_MOST_PLAN_NOTES - 1 :] = [f"and {rest} more of that kind: see the column plan of metrics.csv"]
    return lines


def sweep_grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Return the table of a sweep, one row a job: its overrides, then what its last step measured.

    Args:
        rows: of summary.csv. Keys that are no columns of metrics.csv are the overrides.
    """
    quality = _quality_header(rows)
    known = set(columns())
    labels = list(dict.fromkeys(key for row in rows for key in row if key not in known))
    short = _short_names(labels)
    cells = []
    for row in rows:
        line = {short[key]: _label(row.get(key)) for key in labels}
        line[quality] = with_interval(fraction(row.get("quality")), row.get("quality_low"), row.get("quality_high"), 3)
        line["change"] = signed(row.get("quality_delta"))
        line["weights"] = size(row.get("weights_bytes"))
        line["ratio"] = fraction(row.get("weights_ratio"))
        line["speedup"] = speedup_text(row)
        line["status"] = status_text(row)
        cells.append(line)
    return build_grid(cells, left=(*short.values(), "status"))


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return `sweep_grid` for the terminal."""
    return to_rich(sweep_grid(rows))


def profile_grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Return the table of a profile, one row a node.

    Args:
        rows: with the keys node, op, parameters, macs, weight_bytes, activation_bytes, time_us, time_share (0..1).
    """
    cells = [
        {
            "node": str(row["node"]),
            "op": str(row["op"]),
            "params": count(row.get("parameters")),
            "MACs": count(row.get("macs")),
            "weights": size(row.get("weight_bytes")),
            "activations": size(row.get("activation_bytes")),
            "time": duration(row.get("time_us")),
            "share": _share(row.get("time_share")),
        }
        for row in rows
    ]
    return build_grid(cells, left=("node", "op", "share"))


def profile_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return `profile_grid` for the terminal."""
    return to_rich(profile_grid(rows))


def sensitivity_grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Return the accuracy of each matrix at each setting, one row a matrix.

    Args:
        rows: of the table `sensitivity`, with the keys node, weight, setting (sparsity or bits), value, calibration.
    """
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        what = f"{row['value']:.0%}\nzeros" if row["setting"] == "sparsity" else f"{row['value']:g}\nbits"
        lines.setdefault(str(row["weight"]), {"matrix": str(row["node"])})[what] = fraction(row["calibration"])
    headers = dict.fromkeys(header for line in lines.values() for header in line)
    return build_grid([{h: line.get(h, NOT_MEASURED) for h in headers} for line in lines.values()], left=("matrix",))


def sensitivity_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return `sensitivity_grid` for the terminal."""
    return to_rich(sensitivity_grid(rows))


def sensitivity_note(rows: Sequence[Mapping[str, Any]], drop: float) -> str:
    """Return the settings that lose at most ``drop`` of accuracy on each matrix alone, ready to be given to a run."""
    sparsest, fewest = {}, {}
    for row in rows:
        if row["change"] < -drop:
            continue
        node, value = str(row["node"]), row["value"]
        if row["setting"] == "bits":
            fewest[node] = min(value, fewest.get(node, value))
        else:
            sparsest[node] = max(value, sparsest.get(node, value))
    text = f"at most {drop:g} lost by each alone, untrained: zeros " + ", ".join(f"{n} {v:.0%}" for n, v in sparsest.items())
    return text + (f"; passes.cluster.layers={{{','.join(f'{n}:{v:g}' for n, v in fewest.items())}}}" if fewest else "")


def export_grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Return the table of an exported file, one row a runtime, the reference first.

    Args:
        rows: with the keys runtime, quality_metric, quality, quality_low, quality_high; and of all but the reference
            predictions, equal, max_abs_diff, and for completions tokens, equal_tokens.
    """
    quality = _quality_header(rows)
    cells = []
    for row in rows:
        line = {"runtime": str(row["runtime"])}
        line[quality] = with_interval(fraction(row["quality"]), row["quality_low"], row["quality_high"], 3)
        line["equal predictions"] = _of(row.get("equal"), row.get("predictions"))
        if any("tokens" in other for other in rows):
            line["equal tokens"] = _of(row.get("equal_tokens"), row.get("tokens"))
        line["max |diff| of logits"] = f"{row['max_abs_diff']:.3g}" if "max_abs_diff" in row else NOT_MEASURED
        cells.append(line)
    return build_grid(cells, left=("runtime",))


def export_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return `export_grid` for the terminal."""
    return to_rich(export_grid(rows))


def export_note(row: Mapping[str, Any]) -> str:
    """Return one line on a file that the pass export wrote, from its row in the table `check`."""
    text = f"ONNX file: {row['file_bytes']:,} bytes, opset {row['opset']}, onnx.checker passed"
    if not measured(row["predictions"]):
        return f"{text}; onnxruntime is not installed"
    equal = _of(round(row["equal_share"] * row["predictions"]), row["predictions"])
    return f"{text}; onnxruntime: {equal} predictions equal (calibration split), outputs differ by {row['max_abs_diff']:.3g}"


def _of(part: Any, whole: Any) -> str:
    return f"{part:,} of {whole:,}" if measured(part) and measured(whole) else NOT_MEASURED


def _quality_header(rows: Sequence[Mapping[str, Any]]) -> str:
    metrics = {row.get("quality_metric") for row in rows if measured(row.get("quality_metric"))}
    name = _QUALITY_HEADERS.get(str(metrics.pop()), "quality") if len(metrics) == 1 else "quality"
    splits = {row.get("split") for row in rows if measured(row.get("split"))}
    return f"calibration\n{name}" if splits == {"calibration"} else name


def speedup_text(row: Mapping[str, Any]) -> str:
    """The factor with its interval, or with the word noise where it claims nothing."""
    text = times(row.get("speedup"))
    ends = [row.get(key) for key in ("speedup_low", "speedup_high", "noise_low", "noise_high")]
    if text == NOT_MEASURED or not all(measured(end) for end in ends):
        return text
    low, high, noise_low, noise_high = (float(end) for end in ends)  # type: ignore[arg-type]
    if verdict(low, high, noise_low, noise_high) == "within noise":
        return f"{text} noise"
    return with_interval(text, low, high, 2)


def status_text(row: Mapping[str, Any]) -> str:
    """The status in one word: INVALID, worse (than measure.max_drop allows) or ok."""
    if row.get("status") != "VALID":
        return str(row.get("status") or "INVALID")
    return "worse" if row.get("quality_ok") is False else "ok"


def _label(value: Any) -> str:
    if not measured(value):
        return NOT_MEASURED
    return f"{value:g}" if isinstance(value, float) else str(value)


def _share(value: Any) -> str:
    if not measured(value):
        return NOT_MEASURED
    return f"{value:6.1%} {'#' * round(min(max(value, 0.0), 1.0) * _BAR)}".rstrip()


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return key -> the last part of a dotted key (``passes.prune.sparsity`` -> ``sparsity``) where that is unique."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}
