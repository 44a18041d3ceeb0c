"""The tables: what a cell says, and that eight steps fit a line of 100."""

import io

import pandas as pd
import pytest
from rich.console import Console

from mlperf_opt.records import to_row
from mlperf_opt.report import grid as g
from mlperf_opt.report.grid import Grid, markdown, to_rich
from mlperf_opt.report.table import profile_grid, profile_table, run_grid, run_notes, run_table, sweep_grid, sweep_table


def text_of(table, width=100):
    console = Console(file=io.StringIO(), width=width, markup=True)  # markup on: the cells must be literal anyway
    console.print(table)
    return console.file.getvalue()


def speed(speedup, half, noise=0.01):
    ends = {"speedup_low": speedup - half, "speedup_high": speedup + half}
    return {"speedup": speedup, "noise_low": 1 - noise, "noise_high": 1 + noise, **ends}


@pytest.fixture
def eight(make_record):
    full = {
        "quality_metric": "accuracy",
        "quality": 0.957,
        "quality_low": 0.941,
        "quality_high": 0.973,
        "quality_delta": -0.012,
    }
    full |= {"weights_bytes": 99_940, "weights_ratio": 0.262, "latency_p50_us": 123.4, **speed(1.85, 0.05)}
    names = ["baseline", *(f"fourteen_char{i}" for i in range(1, 8))]
    return [make_record(name, step=i, pass_="finetune" if i else name, **full) for i, name in enumerate(names)]


def rows_of(grid):
    return [dict(zip(grid.headers, row, strict=True)) for row in grid.rows]


def test_a_run_of_eight_steps_fits_and_nothing_is_folded(eight):
    lines = text_of(run_table(eight)).splitlines()
    assert len(lines) == 2 + 8
    assert max(map(len, lines)) <= 100
    assert lines[9].split() == [
        *("7", "fourteen_char7", "finetune", "0.957", "±0.016", "-0.012", "99.9", "kB", "0.262", "123", "us"),
        *("1.85x", "±0.05", "ok"),
    ]


def test_a_narrow_terminal_loses_no_digit(eight):
    wide, narrow = (text_of(run_table(eight[:1]), width) for width in (100, 50))
    assert "…" not in narrow
    assert sorted(filter(str.isdigit, narrow)) == sorted(filter(str.isdigit, wide))


def test_what_was_not_measured_is_a_dash(make_record):
    (row,) = rows_of(run_grid([make_record()]))
    assert row == {
        **{"step": "1 quant", "quality": "-", "change": "-", "weights": "-", "ratio": "-", "p50": "-"},
        **{"speedup": "-", "status": "ok"},
    }


def test_the_pass_is_shown_only_where_a_step_has_another_name(make_record):
    records = [make_record("quant"), make_record("prune2", pass_="prune")]
    assert [row["pass"] for row in rows_of(run_grid(records))] == ["-", "prune"]
    assert "pass" not in run_grid(records[:1]).headers


@pytest.mark.parametrize(
    ("timing", "shown"),
    [
        (speed(1.85, 0.05), "1.85x ±0.05"),
        (speed(0.82, 0.01), "0.82x ±0.01"),
        (speed(1.03, 0.02), "1.03x noise"),
        (speed(1.85, 0.05, noise=0.9), "1.85x noise"),
        ({"speedup": 1.85}, "1.85x"),
        ({}, "-"),
    ],
)
def test_a_speedup_claims_no_more_than_its_interval(make_record, timing, shown):
    assert rows_of(run_grid([make_record(**timing)]))[0]["speedup"] == shown


def test_the_metric_and_the_token_time_name_their_columns(make_record):
    grid = run_grid([make_record(quality_metric="exact_match", quality=0.5, token_us=12.34, latency_p50_us=99)])
    assert rows_of(grid)[0]["exact match"] == "0.500"
    assert rows_of(grid)[0]["token"] == "12.3 us"
    mixed = [make_record(quality_metric="accuracy"), make_record(quality_metric="exact_match")]
    assert "quality" in run_grid(mixed).headers


def test_quality_of_the_calibration_split_is_headed_as_such(make_record):
    chosen = make_record(quality_metric="accuracy", split="calibration")
    for grid in (run_grid, lambda records: sweep_grid([to_row(record) for record in records])):
        assert "calibration\naccuracy" in grid([chosen, chosen]).headers
        # a sweep over both has a column of its own for that
        assert "accuracy" in grid([chosen, make_record(quality_metric="accuracy")]).headers


def test_nothing_in_a_cell_is_markup(make_record):
    shown = text_of(run_table([make_record("[quant,prune]"), make_record("[red]x[/red]")]))
    assert "1 [quant,prune]" in shown
    assert "1 [red]x[/red]" in shown


def test_notes_give_the_noise_and_the_reasons(make_record):
    records = [
        make_record("baseline", step=0, **speed(1.0, 0.01, noise=0.05)),
        make_record("prune", status="INVALID", reasons="quality fell by 0.2"),
        make_record("quant", reasons="p99 needs 662 queries, got 70"),
        make_record("fuse", status="INVALID"),
    ]
    notes = run_notes(records)
    assert notes[1].startswith("noise: no difference is claimed within a factor of 1.05")  # 1 / 0.95 = 1.0526
    assert notes[2:] == [
        "1 prune: INVALID: quality fell by 0.2",
        "1 quant: p99 needs 662 queries, got 70",
        "1 fuse: INVALID: no reason given",
    ]
    assert run_notes([]) == []


def test_what_all_rows_say_stands_below_the_table_once(make_record):
    few, part = "p99 needs 662 queries, got 6", "fc1 keeps fp16"
    records = [
        make_record("baseline", step=0, reasons=few),
        make_record("quant", step=1, reasons=f"{part}; {few}"),
        make_record("prune", step=2, reasons=f"no finetune; {part}; {few}"),
    ]
    assert run_notes(records)[1:] == [f"1 quant: {part}", f"2 prune: no finetune; {part}", f"all rows: {few}"]
    assert run_notes(records[:1])[1:] == [f"0 baseline: {few}"]
    broken = make_record("fuse", step=3, status="INVALID", reasons=f"out of memory; {few}")
    assert run_notes([*records, broken])[1:] == [
        f"0 baseline: {few}",
        f"1 quant: {part}; {few}",
        f"2 prune: no finetune; {part}; {few}",
        f"3 fuse: INVALID: out of memory; {few}",
    ]


def test_a_sweep_shows_its_overrides_and_the_last_step(make_record):
    measured = to_row(make_record(quality_metric="accuracy", quality=0.9, weights_bytes=2500, **speed(2.0, 0.1)))
    del measured["model"]
    rows = [{"job": 0, "passes.prune.sparsity": 0.1 + 0.2, "passes.quant.bits": 8, **measured}]
    rows += [{"job": 1, "passes.prune.sparsity": None, "passes.quant.bits": 4, "status": "INVALID"}]
    first, second = rows_of(sweep_grid(rows))
    assert first == {
        **{"job": "0", "sparsity": "0.3", "bits": "8", "accuracy": "0.900", "change": "-", "weights": "2.50 kB"},
        **{"ratio": "-", "speedup": "2.00x ±0.10", "status": "ok"},
    }
    assert (second["sparsity"], second["accuracy"], second["status"]) == ("-", "-", "INVALID")
    assert "0.900" in text_of(sweep_table(rows))


def test_overrides_of_one_name_keep_their_whole_key():
    grid = sweep_grid([{"a.bits": 8, "b.bits": 4}])
    assert grid.headers[:2] == ("a.bits", "b.bits")


def test_a_profile_fits_and_draws_its_shares():
    row = {"node": "block0.attention.query", "op": "cached_attention", "parameters": 1_234_567, "macs": 999_999}
    row |= {"weight_bytes": 4_938_268, "activation_bytes": 128, "time_us": 1234.5, "time_share": 0.62}
    lines = text_of(profile_table([row, {"node": "relu", "op": "relu"}])).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[2].split() == [
        *("block0.attention.query", "cached_attention", "1.23", "M", "999,999", "4.94", "MB", "128", "B", "1.23", "ms"),
        *("62.0%", "######"),
    ]
    assert rows_of(profile_grid([{"node": "relu", "op": "relu"}]))[0]["share"] == "-"


def test_markdown_keeps_its_cells_in_their_columns():
    grid = Grid(("a\nb", "n"), (("x|y\nz", "1"),), frozenset(["a\nb"]))
    assert markdown(grid, "title", ["one\ntwo"]) == "# title\n\n| a b | n |\n| --- | ---: |\n| x\\|y z | 1 |\n\n- one two\n"


def test_an_empty_table_prints():
    assert text_of(to_rich(run_grid([]))).strip() == ""


@pytest.mark.parametrize(
    ("form", "value", "shown"),
    [
        (g.size, 0, "0 B"),
        (g.size, 999, "999 B"),
        (g.size, 999.6, "1.00 kB"),
        (g.size, 9640, "9.64 kB"),
        (g.size, 99_960, "100 kB"),
        (g.size, 999_600, "1.00 MB"),
        (g.size, 5 * 10**15, "5000 TB"),
        (g.duration, 0.06, "0.06 us"),
        (g.duration, 12.345, "12.3 us"),
        (g.duration, 2.5e6, "2.50 s"),
        (g.count, 0, "0"),
        (g.count, 123_456, "123,456"),
        (g.count, 1_234_567, "1.23 M"),
        (g.times, 9.994, "9.99x"),
        (g.times, 12.34, "12.3x"),
        (g.times, 123.4, "123x"),
        (g.signed, -0.0001, "0.000"),
        (g.signed, 0.012, "+0.012"),
    ],
)
def test_numbers_for_people(form, value, shown):
    assert form(value) == shown


@pytest.mark.parametrize("value", [None, pd.NA, float("nan")])
@pytest.mark.parametrize("form", [g.size, g.duration, g.count, g.times, g.signed, g.fraction])
def test_nothing_is_a_dash_in_every_form(form, value):
    assert form(value) == "-"


def test_what_the_runtime_decided_stands_below_the_table_once(make_record):
    dense, sparse = "fc1: 60 % zeros: dense is faster here", "fc2: 90 % zeros: sparse is faster here"
    records = [
        make_record("baseline", step=0),
        make_record("prune", plan=f"{dense}; {sparse}"),
        make_record("more", step=2, plan=dense),
    ]
    assert run_notes(records)[-2:] == [f"1 prune, 2 more, {dense}", f"1 prune, {sparse}"]
    assert run_notes(records[:1]) == run_notes([make_record("baseline", step=0)])


def test_what_was_decided_for_many_layers_is_cut_short(make_record):
    notes = run_notes([make_record(plan="; ".join(f"fc{i}: 50 % zeros" for i in range(20)))])
    assert len(notes) == 1 + 8 and notes[-2] == "1 quant, fc6: 50 % zeros"
    assert notes[-1] == "and 13 more of that kind: see the column plan of metrics.csv"
