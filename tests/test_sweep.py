"""Many runs in one summary: a row a job, its overrides as columns, failures among them."""

import csv
from pathlib import Path

import pytest

from mlperf_opt.records import Record, columns
from mlperf_opt.sweep import Job, summary_rows, write_summary


def record(name="prune", **fields):
    given = {"run": "0", "model": "mlp", "data": "digits", "split": "test", "seed": 0, "runtime": "numpy"}
    given |= {"threads": 1, "batch": 1}
    return Record(**{**given, "step": 1, "name": name, "pass_": name, "settings": "{}", "status": "VALID", **fields})


def job(number, *overrides, records=None, failure=None):
    return Job(number, overrides, (record("baseline", step=0), record()) if records is None else records, failure)


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_a_job_with_the_columns_of_its_last_step():
    (row,) = summary_rows([job(0, records=(record("baseline", quality=0.5), record("prune", quality=0.25)))])
    assert list(row) == ["job", *columns()]
    assert (row["job"], row["name"], row["quality"]) == (0, "prune", 0.25)


def test_overrides_are_columns_of_their_own_in_the_order_in_which_they_first_come():
    jobs = [job(0, "passes.prune.sparsity=0.5", "+extra.a=1"), job(1, "~promises", "passes.prune.sparsity=0.9")]
    first, second = summary_rows(jobs)
    assert list(first)[:4] == ["job", "passes.prune.sparsity", "extra.a", "promises"] == list(second)[:4]
    assert [first[k] for k in list(first)[1:4]] == ["0.5", "1", None]
    assert [second[k] for k in list(second)[1:4]] == ["0.9", None, ""]


def test_a_setting_called_like_a_column_keeps_both():
    (row,) = summary_rows([job(0, "model=cnn", "seed=7", records=(record(model="cnn", seed=7),))])
    assert (row["override.model"], row["model"]) == ("cnn", "cnn")
    assert (row["override.seed"], row["seed"]) == ("7", 7)


def test_a_value_may_hold_an_equals_sign():
    assert summary_rows([job(0, "model.weights=a=b")])[0]["model.weights"] == "a=b"


def test_rows_stand_in_the_order_of_the_jobs_whatever_finished_first():
    assert [row["job"] for row in summary_rows([job(2, "a=2"), job(0, "a=0"), job(10, "a=10"), job(1, "a=1")])] == [
        0,
        1,
        2,
        10,
    ]


@pytest.mark.parametrize("records", [(), (record("baseline", quality=0.5),)])
def test_a_failed_job_is_a_row_with_its_reason(records):
    """Whatever its last step said: the job failed. Without any step nothing is claimed about it."""
    (row,) = summary_rows([job(3, "a=1", records=records, failure="the disk caught fire")])
    assert (row["status"], row["reasons"], row["a"]) == ("INVALID", "the disk caught fire", "1")
    assert row["quality"] == (0.5 if records else None)


def test_the_summary_is_two_files_and_the_rows(tmp_path):
    jobs = [job(0, "passes.prune.sparsity=0.5"), job(1, "passes.prune.sparsity=0.9", failure="out of luck")]
    rows = write_summary(tmp_path, jobs)
    found = read(tmp_path / "summary.csv")
    assert [(r["job"], r["passes.prune.sparsity"], r["status"]) for r in found] == [
        ("0", "0.5", "VALID"),
        ("1", "0.9", "INVALID"),
    ]
    assert [row["job"] for row in rows] == [0, 1]
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "2 runs, the last step of each" in text and "0.9" in text and "INVALID" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["summary.csv", "summary.md"]


def test_a_summary_grows_with_the_jobs(tmp_path):
    write_summary(tmp_path, [job(0, "a=1")])
    write_summary(tmp_path, [job(0, "a=1"), job(1, "a=2", "b=3")])
    assert [(row["a"], row["b"]) for row in read(tmp_path / "summary.csv")] == [("1", ""), ("2", "3")]


def test_a_sweep_without_a_finished_job_is_an_empty_summary(tmp_path):
    assert write_summary(tmp_path, []) == []
    assert "0 runs" in Path(tmp_path, "summary.md").read_text(encoding="utf-8")
