"""The milestone's promises beside the measurements."""

import pytest

from mlperf_opt.errors import ConfigError
from mlperf_opt.report.milestone import milestone_grid, milestone_table


def lines(records, *promises):
    grid = milestone_grid(records, promises)
    return [row[2:] for row in grid.rows]


def test_promises_are_met_missed_within_better_and_worse(make_record):
    records = [
        make_record("baseline", weights_ratio=1.0, quality=0.95, quality_low=0.93, quality_high=0.97),
        make_record("quant", weights_ratio=0.262, quality=0.85),
        make_record("prune", weights_ratio=0.125, quality=0.5),
        make_record("late"),
    ]
    span = {"quality_low": 0.84, "quality_high": 0.9}
    assert lines(
        records,
        {"step": "baseline", "label": "FP32", "weights_ratio": 1, **span},
        {"step": "quant", "label": "INT8", "weights_ratio": 0.25, **span},
        {"step": "prune", "label": "half", "weights_ratio": 0.125, **span},
        {"step": "prune", "label": "no promise"},
        {"step": "late", "label": "not measured", "weights_ratio": 0.1, **span},
    ) == [
        ("1.000", "1.000", "met", "0.840..0.900", "0.950 ±0.020", "better"),
        ("0.250", "0.262", "missed", "0.840..0.900", "0.850", "within"),
        ("0.125", "0.125", "met", "0.840..0.900", "0.500", "worse"),
        ("-", "0.125", "-", "-", "0.500", "-"),
        ("0.100", "-", "-", "0.840..0.900", "-", "-"),
    ]
    assert milestone_table(records, [{"step": "quant", "label": "INT8"}]).row_count == 1


def test_a_promise_measured_on_the_calibration_split_says_so(make_record):
    promise = {"step": "quant", "label": "INT8", "quality": 0.9}
    assert "measured\naccuracy" in milestone_grid([make_record(quality=0.95)], [promise]).headers
    chosen = milestone_grid([make_record(quality=0.95, split="calibration")], [promise])
    assert "calibration\naccuracy" in chosen.headers and "measured\naccuracy" not in chosen.headers


def test_a_papers_table_is_in_times_of_bytes_or_of_weights_and_a_least_accuracy(make_record):
    records = [
        make_record("baseline", parameters=266_610, nonzero=266_610, file_ratio=1.0, quality=0.9902),
        make_record("prune", parameters=266_610, nonzero=21_706, file_ratio=0.1, quality=0.9841),
        make_record("units", parameters=100_000, nonzero=30_000),
        make_record("share", file_ratio=0.0254, quality=0.98415, quality_low=0.98165, quality_high=0.98665),
        make_record("late"),
    ]
    assert lines(
        records,
        {"step": "prune", "label": "P", "times_fewer": 12, "quality": 0.9841},
        {"step": "units", "label": "P", "times_fewer": 9},
        {"step": "share", "label": "P+Q", "times_smaller": 32, "quality": 0.9842},
        {"step": "share", "label": "P+Q+H", "times_smaller": 40},
        {"step": "late", "label": "not measured", "times_fewer": 2, "quality": 0.5},
        {"step": "late", "label": "not measured", "times_smaller": 2},
    ) == [
        ("12.0x weights", "12.3x weights", "met", "0.9841", "0.9841", "met"),
        ("9.0x weights", "8.9x weights", "missed", "-", "-", "-"),
        ("32.0x bytes", "39.4x bytes", "met", "0.9842", "0.9841 ±0.0025", "missed"),
        ("40.0x bytes", "39.4x bytes", "missed", "-", "0.984 ±0.003", "-"),
        ("2.0x weights", "-", "-", "0.5000", "-", "-"),
        ("2.0x bytes", "-", "-", "-", "-", "-"),
    ]


@pytest.mark.parametrize(
    ("promise", "message"),
    [
        ({"step": "quants", "label": "x"}, r"promises\[0\]\.step=quants: no such step; did you mean 'quant'"),
        (
            {"step": "quant", "label": "x", "weigths_ratio": 1},
            r"promises\[0\]\.weigths_ratio: no such setting; did you mean",
        ),
        ({"step": "quant", "label": "x", "weights_ratio": 0}, r"promises\[0\]\.weights_ratio=0.0: expected more than 0"),
        (
            {"step": "quant", "label": "x", "quality_low": 0.9},
            r"promises\[0\]\.quality_low=0.9, quality_high=None: expected both",
        ),
        ({"step": "quant", "label": "x", "quality_low": 0.9, "quality_high": 0.8}, r"0 <= low <= high <= 1"),
        ({"step": "quant", "label": "x", "times_smaller": -1}, r"promises\[0\]\.times_smaller=-1.0: expected more than 0"),
        (
            {"step": "quant", "label": "x", "times_smaller": 2, "times_fewer": 3},
            r"times_smaller=2.0: expected one of times_smaller, times_fewer",
        ),
        ({"step": "quant", "label": "x", "quality": 98.4}, r"promises\[0\]\.quality=98.4: expected 0 to 1"),
        (
            {"step": "quant", "label": "x", "quality": 0.9, "quality_low": 0.8, "quality_high": 0.9},
            r"quality=0.9: expected no range beside it",
        ),
        ({"label": "x"}, r"promises\[0\]\.step: missing"),
    ],
)
def test_malformed_promises_are_refused(make_record, promise, message):
    with pytest.raises(ConfigError, match=message):
        milestone_grid([make_record("quant")], [promise])
