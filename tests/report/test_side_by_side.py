"""Where runs ended, in one table; the cells worked out by hand."""

import pandas as pd
import pytest

from mlperf_opt.records import to_row
from mlperf_opt.report.results import Results
from mlperf_opt.report.side_by_side import side_by_side

TIMED = {"speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1, "noise_low": 0.99, "noise_high": 1.01}
SMALL = {"file_bytes": 2_570, "file_ratio": 1 / 416, "latency_p50_us": 4.28, **TIMED}


@pytest.fixture
def run(make_record):
    """Return a function: a run of two steps, from the fields of the last."""

    def of(run, jobs=(None,), **fields):
        ends = {"quality_metric": "accuracy", "quality": 0.9895, "quality_low": 0.9873, "quality_high": 0.9913, **fields}
        last = make_record(**{"name": "tidy", "step": 6, **ends})
        records = [make_record("baseline", step=0, quality=0.5), last]
        frames = [pd.DataFrame([{**to_row(r), **({} if job is None else {"job": job})} for r in records]) for job in jobs]
        return Results(run, pd.concat(frames).convert_dtypes())

    return of


def rows_of(*results):
    grid = side_by_side(results)
    return [dict(zip(grid.headers, row, strict=True)) for row in grid.rows]


def test_a_run_is_a_row_with_its_last_step(run):
    (row,) = rows_of(run("smallest", **SMALL))
    assert row == {
        **{"run": "smallest", "last step": "6 tidy", "error": "0.0105 ±0.0020", "file": "2.57 kB", "smaller": "416x"},
        **{"p50": "4.28 us", "speedup": "2.00x ±0.10", "status": "ok"},
    }


def test_a_sweep_is_a_row_a_job(run):
    assert [row["run"] for row in rows_of(run("a"), run("sweep", jobs=("0", "2")))] == ["a", "sweep job 0", "sweep job 2"]


@pytest.mark.parametrize("key, value", [("model", "cnn"), ("data", "mnist"), ("split", "calibration"), ("runtime", "onnx")])
def test_what_differs_between_the_runs_is_a_column(run, key, value):
    same, other = rows_of(run("a"), run("b", **{key: value}))
    assert other[key] == value != same[key]
    assert key not in rows_of(run("a"), run("b"))[0]


def test_the_error_is_named_after_what_was_measured(run):
    nats = {"quality_metric": "nats_per_token", "quality": 1.6236, "quality_low": None}
    assert rows_of(run("a", **nats))[0]["nats/token"] == "1.6236"
    assert rows_of(run("a", quality_metric="exact_match"))[0]["error"] == "0.0105 ±0.0020"
    assert rows_of(run("a", split="calibration"))[0]["calibration\nerror"] == "0.0105 ±0.0020"
    mixed = rows_of(run("a", **nats), run("b"))
    assert [row["quality"] for row in mixed] == ["1.6236", "0.9895 ±0.0020"], "an error and nats don't share a column"


def test_what_was_not_measured_is_a_dash_and_a_failed_run_says_so(run):
    failed = dict.fromkeys(("quality_metric", "quality", "quality_low", "quality_high")) | {"status": "INVALID"}
    (row,) = rows_of(run("a", **failed))
    assert (row["error"], row["file"], row["smaller"], row["p50"], row["speedup"]) == ("-",) * 5
    assert row["status"] == "INVALID"


def test_a_generation_shows_its_token_time(run):
    assert rows_of(run("a", token_us=12.34))[0]["token"] == "12.3 us"


def test_the_longest_names_of_the_pipelines_fit_into_a_hundred_columns(run):
    result = run("deep_compression_lenet5", name="retrain_shared", **{**SMALL, "latency_p50_us": 999.4})
    grid = side_by_side([result])
    widths = [max(map(len, column)) for column in zip(grid.headers, *grid.rows, strict=True)]
    assert sum(widths) + len(widths) - 1 <= 100
