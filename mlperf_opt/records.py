"""One row of metrics.csv: the record of one step of a run. Fractions are 0..1; a cell that wasn't measured is None (empty).

Field names carry their units; the order of the fields is the order of the columns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

SCHEMA = 1  # raise when a column is renamed, removed or changes its meaning


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was configured, measured and concluded for one step.

    Ratios compare with the run's baseline row: file_ratio and weights_ratio are size / baseline size, speedup is
    baseline time / time. quality_delta is positive when better. The baseline's own row is step 0.
    """

    schema: int = SCHEMA
    # what ran
    run: str
    model: str
    data: str
    split: str  # test | calibration: what quality is counted on
    seed: int
    runtime: str
    threads: int
    batch: int  # samples per timed query
    step: int
    name: str  # name of the step in the pipeline
    # `pass` in the CSV, which is a keyword here
    pass_: str
    settings: str  # the pass's settings as JSON
    # what it weighs
    parameters: int | None = None
    nonzero: int | None = None
    sparsity: float | None = None
    macs: int | None = None  # one sample, zeros counted
    file_bytes: int | None = None
    weights_bytes: int | None = None  # all that the file needs to rebuild the weights
    file_ratio: float | None = None
    weights_ratio: float | None = None
    model_sha256: str | None = None
    # how good it is, on held-out samples, by the model read back from the file
    quality_metric: str | None = None  # accuracy | exact_match | nats_per_token
    quality: float | None = None
    quality_low: float | None = None  # 95 % interval
    quality_high: float | None = None
    quality_delta: float | None = None
    fixed: int | None = None  # samples wrong at the baseline and right here
    broken: int | None = None
    quality_ok: bool | None = None
    # how fast it is
    latency_p50_us: float | None = None
    latency_p90_us: float | None = None  # early-stopping estimate
    latency_p99_us: float | None = None
    latency_n: int | None = None
    throughput_per_s: float | None = None
    throughput_batch: int | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    noise_low: float | None = None  # the baseline against itself
    noise_high: float | None = None
    token_us: float | None = None
    prefill_us: float | None = None
    state_bytes: int | None = None
    peak_activation_bytes: int | None = None
    reference_max_abs_diff: float | None = None  # against the numpy runtime; empty where that is the runtime
    pass_seconds: float | None = None
    plan: str | None = None  # what the runtime decided where it had a choice: "node: note; node: note"
    # the verdict
    division: str | None = None  # closed-style | open-style
    status: str = "INVALID"  # earned, never assumed
    reasons: str = ""


def columns() -> list[str]:
    """The CSV's columns in order."""
    return [field.name.rstrip("_") for field in fields(Record)]


def to_row(record: Record) -> dict[str, object]:
    """Return the record as column -> cell."""
    return {field.name.rstrip("_"): getattr(record, field.name) for field in fields(Record)}
