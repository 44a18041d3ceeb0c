"""Ctrl-C: one line, exit 130, whole files only; and training goes on to the weights that it would have had."""

import json
import signal
import subprocess
import time

import pandas as pd
import pytest
from cli_process import command, environment, leftovers

from mlperf_opt import cli
from mlperf_opt.artifacts import load_metadata
from mlperf_opt.commands import train as train_command
from mlperf_opt.training import EpochReport
from mlperf_opt.training import loop as loop_module

pytestmark = pytest.mark.cli


def interrupted_when(folder, words, condition, stdout=subprocess.DEVNULL, **changes):
    """Start a command, send SIGINT once ``condition()`` holds, and return (status, stderr)."""
    process = subprocess.Popen(
        words, cwd=folder, env=environment(**changes), stdout=stdout, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    # CPython ends a process by the signal itself where exec() was interrupted; a shell shows 130 for both
    return (130 if process.returncode == -signal.SIGINT else process.returncode), err


def test_a_run_keeps_its_finished_steps(tmp_path):
    run_folder = tmp_path / "run"
    words = command("passes=[quant,prune]", "hydra.run.dir=run", "runtime=numpy", "measure.seconds=0.8")
    status, err = interrupted_when(tmp_path, words, (run_folder / "summary.md").exists)
    assert status == 130
    assert err == "interrupted: finished steps are on disk\n"
    rows = pd.read_csv(run_folder / "metrics.csv")
    assert rows["name"].tolist() == ["baseline"] and rows["status"].tolist() == ["VALID"]
    assert (run_folder / "summary.md").exists() and (run_folder / "run.json").exists()
    assert not leftovers(tmp_path)


def test_a_sweep_keeps_its_finished_jobs(tmp_path):
    summary = tmp_path / "sweep" / "summary.csv"
    words = command("-m", "seed=1,2", "passes=[prune]", "hydra.sweep.dir=sweep", "runtime=numpy", "measure.seconds=0.5")
    status, err = interrupted_when(tmp_path, words, summary.exists)
    assert status == 130
    assert err == "interrupted: finished steps are on disk\n"
    rows = pd.read_csv(summary)
    assert rows["override.seed"].tolist() == [1] and rows["status"].tolist() == ["VALID"]
    assert len(pd.read_csv(tmp_path / "sweep" / "0" / "metrics.csv")) == 2
    assert not leftovers(tmp_path)
    # Hydra's notes name places of this machine
    assert not (tmp_path / "sweep" / "multirun.yaml").exists()


def test_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """Interrupted as soon as a line is shown, seconds before a checkpoint would be due."""
    settings, shown = ["model=mlp", "train.epochs=100"], tmp_path / "shown"
    with shown.open("w") as stdout:
        words = command("train", *settings, "save=a/w.safetensors")
        status, err = interrupted_when(tmp_path, words, lambda: "epoch" in shown.read_text(), stdout, PYTHONUNBUFFERED="1")
    assert status == 130
    assert err == "interrupted: the same command goes on from the checkpoint a/w.checkpoint\n"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["w.checkpoint"]
    assert 0 < json.loads(load_metadata(tmp_path / "a" / "w.checkpoint")["progress"])["step"] < 3200
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *settings, "save=a/w.safetensors"]) == 0
    assert cli.main(["train", *settings, "save=b/w.safetensors"]) == 0
    assert (tmp_path / "a" / "w.safetensors").read_bytes() == (tmp_path / "b" / "w.safetensors").read_bytes()
    assert not (tmp_path / "a" / "w.checkpoint").exists()


@pytest.fixture
def stops_after(monkeypatch):
    """Return a function: from now on Ctrl-C comes when that epoch is reported."""
    healthy = loop_module.EpochReport

    def arm(last):
        def report(epoch, *rest):
            if epoch == last:
                signal.raise_signal(signal.SIGINT)
            return healthy(epoch, *rest)

        monkeypatch.setattr(loop_module, "EpochReport", report)

    return arm


def test_what_was_trained_otherwise_is_not_gone_on_with(tmp_path, monkeypatch, capsys, stops_after):
    monkeypatch.chdir(tmp_path)
    words = ["train", "model=mlp", "save=w.safetensors"]
    stops_after(3)
    assert cli.main([*words, "train.epochs=6"]) == 130
    assert EpochReport is not loop_module.EpochReport
    capsys.readouterr()
    assert cli.main([*words, "train.epochs=7"]) == 2
    assert "w.checkpoint is no checkpoint of this training" in capsys.readouterr().err
    (tmp_path / "w.checkpoint").write_bytes(b"junk")
    assert cli.main([*words, "train.epochs=6"]) == 2
    assert "w.checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "w.safetensors").exists()


def test_without_a_checkpoint_nothing_is_promised(tmp_path, monkeypatch, capsys):
    """Before the first step there is none."""

    def interrupted(*_arguments, **_settings):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_command, "train", interrupted)
    assert cli.main(["train", "model=mlp", "train.epochs=6", "save=w.safetensors"]) == 130
    assert capsys.readouterr().err == "interrupted: no checkpoint was written\n"
    assert list(tmp_path.iterdir()) == []


def test_interrupted_while_the_result_is_measured(tmp_path, monkeypatch, capsys):
    """Trained it is, and it is not trained again."""

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    words = ["train", "model=mlp", "train.epochs=2", "save=w.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr(train_command, "Subject", interrupted)
        assert cli.main(words) == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on from the checkpoint w.checkpoint\n"
    monkeypatch.setattr(loop_module._Training, "step", interrupted)
    assert cli.main(words) == 0
    assert not (tmp_path / "w.checkpoint").exists() and (tmp_path / "w.safetensors").exists()
