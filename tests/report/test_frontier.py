"""What a plot shows: which rows are points, what is compared with what, and the published figures."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from mlperf_opt.errors import ConfigError
from mlperf_opt.records import to_row
from mlperf_opt.report import frontier
from mlperf_opt.report.frontier import Point, Series, panels, published
from mlperf_opt.report.results import Results

MNIST = {"model": "lenet5", "data": "mnist"}


@pytest.fixture
def point(make_record):
    """Return a function: a row with an accuracy and bytes."""

    def of(file_bytes, quality, **fields):
        ends = {"quality_low": None if quality is None else quality - 0.01, "quality_high": quality}
        given = {"quality_metric": "accuracy", "quality": quality, **ends, "file_bytes": file_bytes, **fields}
        return to_row(make_record(**given))

    return of


def read(name, *rows):
    return Results(name, pd.DataFrame(rows).convert_dtypes())


def test_every_step_of_a_run_is_a_point_in_its_order(point):
    (panel,) = panels([read("a", point(9000, 0.75), point(500, 0.5), point(700, 0.625))])
    assert (panel.model, panel.data, panel.split, panel.metric) == ("mlp", "digits", "test", "accuracy")
    (series,) = panel.series
    assert series.name == "a" and [p.file_bytes for p in series.points] == [9000, 500, 700]
    assert series.points[0] == Point(9000, 25.0, 25.0, pytest.approx(26.0)), "the interval turns round with the error"


def test_of_a_sweep_the_last_step_of_each_job_counts_in_the_order_of_bytes(point):
    rows = point(9000, 0.9), point(500, 0.5), point(9000, 0.9), point(300, 0.4)
    jobs = read("sweep", *({**row, "job": str(place // 2)} for place, row in enumerate(rows)))
    assert [(p.file_bytes, p.loss) for p in panels([jobs])[0].series[0].points] == [(300, 60.0), (500, 50.0)]


def test_rows_that_claim_nothing_are_left_out(point):
    rows = point(9000, 0.9), point(10, 0.9, status="INVALID"), point(20, None), point(None, 0.9)
    assert [p.file_bytes for p in panels([read("a", *rows)])[0].series[0].points] == [9000]
    with pytest.raises(ConfigError, match="nothing to draw: no VALID row with a quality in a, b"):
        panels([read("a", rows[1]), read("b", rows[2])])


@pytest.mark.parametrize("key, value", [("model", "cnn"), ("data", "mnist"), ("split", "calibration")])
def test_what_may_not_be_compared_gets_a_panel_of_its_own(point, key, value):
    first, second = panels([read("a", point(1, 0.5)), read("b", point(2, 0.5, **{key: value}), point(3, 0.5))])
    assert [s.name for s in first.series] == ["a", "b"] and [s.name for s in second.series] == ["b"]
    assert getattr(second, key) == value


def test_nats_are_drawn_as_they_are(point):
    nats = {"quality_metric": "nats_per_token", "quality_low": 1.4, "quality_high": 1.6}
    assert panels([read("a", point(100, 1.5, **nats))])[0].series[0].points == (Point(100, 1.5, 1.4, 1.6),)


def test_published_figures_stand_beside_the_model_that_they_are_of(point):
    (panel,) = panels([read("a", point(1, 0.5, **MNIST))])
    assert panel.published == (
        Series("Deep Compression (2015)", (Point(44000, 0.74, 0.74, 0.74),)),
        Series("MIRACLE (2018)", (Point(3103, 0.69, 0.69, 0.69), Point(1556, 0.96, 0.96, 0.96))),
        Series("EPR (2019)", (Point(2840, 1.0, 1.0, 1.0),)),
    )
    assert [s.name for s in published("lenet300", "mnist", "test", "accuracy")] == ["Deep Compression (2015)", "EPR (2019)"]


@pytest.mark.parametrize("change", [{"model": "mlp"}, {"data": "digits"}, {"split": "calibration"}])
def test_published_figures_are_never_beside_what_they_can_t_be_compared_with(point, change):
    assert panels([read("a", point(1, 0.5, **{**MNIST, **change}))])[0].published == ()


def test_every_published_figure_has_a_source_and_agrees_with_its_ratio():
    """The papers' own ratios are to 1,066 kB (266,610 weights) and 1,724 kB (431,080), in float32."""
    rows = list(csv.DictReader(Path(frontier.__file__).with_name("published.csv").read_text(encoding="utf-8").splitlines()))
    ratios = [{"lenet300": 266_610, "lenet5": 431_080}[row["model"]] * 4 / int(row["bytes"]) for row in rows]
    stated = [40, 124, 39, 555, 1110, 606]
    assert ratios == [pytest.approx(ratio, rel=0.015) for ratio in stated]
    assert all(row["source"].startswith("arXiv:") and row["counted"] for row in rows)
