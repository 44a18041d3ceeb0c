"""The command ``plot``: from folders to a file, and what it refuses."""

import io

import pytest
from rich.console import Console

from mlperf_opt import extras
from mlperf_opt.commands import plot
from mlperf_opt.errors import ConfigError
from mlperf_opt.records import Record
from mlperf_opt.report.csv_files import write_metrics


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A run, and a sweep of two jobs, of which one is lost."""
    monkeypatch.chdir(tmp_path)
    basics = {"run": "r", "model": "mlp", "data": "digits", "split": "test", "seed": 0, "runtime": "numpy", "threads": 1}
    basics |= {"batch": 1, "pass_": "x", "settings": "{}", "quality_metric": "accuracy", "status": "VALID"}
    rows = [Record(**basics, step=0, name="baseline", quality=0.95, file_bytes=9640)]
    rows.append(Record(**basics, step=1, name="quant", quality=0.9, file_bytes=2500))
    for folder in ("run", "sweep/0", "sweep/1"):
        (tmp_path / folder).mkdir(parents=True)
        write_metrics(tmp_path / folder / "metrics.csv", rows)
    (tmp_path / "sweep" / "1" / "metrics.csv").unlink()
    (tmp_path / "sweep" / "summary.csv").write_text("job\n")
    return tmp_path


def run(*arguments):
    console = Console(file=io.StringIO(), width=100)
    assert plot.run(list(arguments), console) == 0
    return console.file.getvalue()


@pytest.mark.parametrize("kind, start", [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_runs_and_sweeps_are_drawn_into_one_file(runs, kind, start):
    shown = run("run", "sweep", f"save=plot.{kind}")
    assert "sweep: no metrics.csv in job 1" in shown
    assert f"3 points of 2 runs or sweeps written to plot.{kind}" in shown
    assert (runs / f"plot.{kind}").read_bytes().startswith(start)


def test_without_matplotlib_one_line_names_the_extra_and_nothing_is_written(runs, monkeypatch):
    monkeypatch.setattr(extras, "is_installed", lambda package: package != "matplotlib")
    with pytest.raises(ConfigError, match=r"^plot needs matplotlib: pip install 'mlperf-opt\[report\]'$"):
        run("run", "save=plot.svg")
    assert not (runs / "plot.svg").exists()


def test_a_file_that_can_t_be_written_leaves_the_old_one(runs):
    (runs / "plot.svg").write_text("old")
    (runs / "run" / "metrics.csv").write_text("broken")
    with pytest.raises(ConfigError, match=r"not a metrics\.csv"):
        run("run", "save=plot.svg")
    assert (runs / "plot.svg").read_text() == "old"
