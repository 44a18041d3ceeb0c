"""The command ``compare``: what it takes, prints and returns."""

import io
import shutil

import pytest
from rich.console import Console

from mlperf_opt.commands import compare
from mlperf_opt.errors import ConfigError
from mlperf_opt.records import Record
from mlperf_opt.report.csv_files import write_metrics


def record(name, **fields):
    basics = {"run": "r", "model": "mlp", "data": "digits", "split": "test", "seed": 0, "runtime": "numpy"}
    basics |= {
        "threads": 1,
        "batch": 1,
        "step": 0,
        "name": name,
        "pass_": name,
        "settings": "{}",
        "quality_metric": "accuracy",
    }
    basics |= {"quality": 0.95, "quality_low": 0.93, "quality_high": 0.97, "weights_bytes": 9640, "status": "VALID"}
    return Record(**{**basics, **fields})


@pytest.fixture
def runs(tmp_path):
    """Two run folders: b lost accuracy and bytes against a."""
    for name, fields in (
        ("a", {}),
        ("b", {"quality": 0.75, "quality_low": 0.71, "quality_high": 0.79, "weights_bytes": 2500}),
    ):
        (tmp_path / name).mkdir()
        write_metrics(tmp_path / name / "metrics.csv", [record("baseline"), record("quant", step=1, **fields)])
    return tmp_path


def run(*arguments):
    console = Console(file=io.StringIO(), width=100, markup=True)
    code = compare.run([str(argument) for argument in arguments], console)
    return code, console.file.getvalue()


def test_runs_are_compared(runs):
    code, shown = run(runs / "a", runs / "b")
    assert code == 0
    assert max(map(len, shown.splitlines())) <= 100
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "mlp/digits quant quality 0.950 0.750 -0.200 0.789 worse" in lines
    assert "weights_bytes 9.64 kB 2.50 kB -7.14 kB 0.259 better" in lines


def test_a_file_and_its_folder_are_the_same(runs):
    _, shown = run(runs / "a" / "metrics.csv", runs / "a")
    assert shown.count("same") == 4


def test_gates_decide_the_exit_code(runs):
    code, shown = run(runs / "a", runs / "b", "--fail-on", "quality_delta<-0.01", "--fail-on", "weights_bytes_ratio>1")
    assert code == 1
    assert "--fail-on quality_delta<-0.01: mlp/digits quant: quality_delta = -0.2" in shown
    assert "weights_bytes_ratio>1:" not in shown
    assert run(runs / "a", runs / "a", "--fail-on", "quality_delta<-0.01")[0] == 0


def test_sweeps_are_compared_job_by_job(runs, tmp_path):
    for sweep in ("s", "t"):
        for job in ("0", "2", "10"):
            shutil.copytree(runs / "a", tmp_path / sweep / job)
        (tmp_path / sweep / "summary.csv").write_text("job\n")
    (tmp_path / "t" / "2" / "metrics.csv").unlink()
    code, shown = run(tmp_path / "s", tmp_path / "t")
    assert code == 0
    assert "job 10: mlp/digits quant" in shown
    assert "t: no metrics.csv in job 2" in shown.replace("\n", " ")
    assert run(tmp_path / "s", runs / "b", "--fail-on", "quality_delta<-0.01")[0] == 1


def test_what_could_not_be_compared_is_said_once(runs):
    fields = {"speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1, "noise_low": 0.99, "noise_high": 1.01}
    write_metrics(runs / "x.csv", [record("baseline", **fields), record("quant", **fields)])
    write_metrics(runs / "y.csv", [record("baseline", threads=2, **fields), record("other", threads=2, **fields)])
    _, shown = run(runs / "x.csv", runs / "y.csv")
    assert "speedup: timed differently: threads 1 and 2 (mlp/digits baseline)" in shown
    assert "only on the second side: mlp other" in shown


def test_help_is_printed():
    code, shown = run("--help")
    assert code == 0
    assert "--fail-on EXPR" in shown
    assert compare.HELP in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected two or more run folders"),
        (["a"], "expected two or more run folders"),
        (["a", "b", "c"], "no such file or folder: 'c'"),
        (["a", "b", "--fail"], "compare: unrecognized arguments: --fail"),
        (["a", "b", "--fail-on"], "compare: argument --fail-on: expected one argument"),
        (["a", "no"], "no such file or folder: 'no'"),
        (["a", ""], "no such file or folder: ''"),
        (["a", "empty"], r"empty has no metrics.csv \(a run\) and no summary.csv \(a sweep\)"),
        (["a", "hollow"], "hollow is a sweep without a job that has a metrics.csv"),
        (["a", "note.txt"], "note.txt: not a metrics.csv of mlperf_opt"),
        (["a", "b", "--fail-on", "qualty_delta<0"], "did you mean 'quality_delta'"),
    ],
)
def test_mistakes_are_one_line(runs, monkeypatch, arguments, message):
    monkeypatch.chdir(runs)
    (runs / "empty").mkdir()
    (runs / "hollow").mkdir()
    (runs / "hollow" / "summary.csv").write_text("job\n")
    (runs / "note.txt").write_text("hello\n")
    with pytest.raises(ConfigError, match=message) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)


def test_more_than_two_stand_side_by_side_and_a_gate_holds_each_against_the_first(runs):
    (runs / "c").mkdir()
    write_metrics(runs / "c" / "metrics.csv", [record("baseline"), record("quant", step=1, weights_bytes=1200)])
    code, shown = run(runs / "a", runs / "b", runs / "c", "--fail-on", "weights_bytes_ratio<0.2")
    assert code == 1 and "--fail-on weights_bytes_ratio<0.2: c: mlp/digits quant: weights_bytes_ratio = 0.124" in shown
    rows = [line.split()[:4] for line in shown.splitlines()]
    assert rows[2:5] == [[name, "1", "quant", error] for name, error in (("a", "0.0500"), ("b", "0.2500"), ("c", "0.0500"))]
    assert "verdict" not in shown, "step by step are two"
    assert run(runs / "a", runs / "b", runs / "c")[0] == 0


def test_runs_of_one_name_are_told_apart_by_their_paths(runs):
    shutil.copytree(runs / "b", runs / "other" / "b")
    _, shown = run(runs / "b", runs / "other" / "b" / "metrics.csv", runs / "b")
    names = [line.split()[0] for line in shown.splitlines()[2:5]]
    assert names == [f"{runs.name}/b", "other/b", f"{runs.name}/b"]
