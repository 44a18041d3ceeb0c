"""A pipeline that is killed in the middle of a training goes on in the same folder, to the same files bit for bit."""

import hashlib
import random
import signal
import subprocess
import time

import pytest
from cli_process import FAST, command_saving_often, environment, leftovers, run

from mlperf_opt import cli
from mlperf_opt.training import loop

pytestmark = pytest.mark.cli

SPARSIFY = [
    "passes.prune.sparsity=0.8",
    "passes.prune.schedule=geometric",
    "passes.prune.epochs=40",
    "passes.prune.batch=16",
]
TRAINED = ["passes=prune+finetune", *SPARSIFY, "passes.finetune.epochs=40", "seed=3", *FAST]
SHORT = ["pipeline=deep_compression", *(f"passes.{step}.epochs=25" for step in ("prune", "retrain", "retrain_shared"))]
SHORT += [*(f"passes.{step}.shift=0" for step in ("prune", "retrain", "retrain_shared")), *FAST]


def files(folder):
    """Name -> SHA-256 of every model file, and of every table of a training."""
    found = sorted([*folder.glob("*.safetensors"), *folder.glob("*-epochs.csv")])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def stop_when(folder, words, condition, number):
    """Start a command, send it signal ``number`` once ``condition()`` holds, and return whether that stopped it."""
    process = subprocess.Popen(
        command_saving_often(*words), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(number)
    return process.wait(timeout=60) in (-number, 130)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The files of the run that nobody stopped."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main([*TRAINED, "hydra.run.dir=run"]) == 0
    found = files(folder / "run")
    steps = ["01-prune-epochs.csv", "01-prune.safetensors", "02-finetune-epochs.csv", "02-finetune.safetensors"]
    assert list(found) == ["00-baseline.safetensors", *steps]
    assert len(set(found.values())) == 5
    return found


@pytest.mark.parametrize(
    "number, step",
    [
        pytest.param(signal.SIGKILL, "02-finetune", id="kill"),
        pytest.param(signal.SIGINT, "01-prune", id="Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_stopped_in_the_middle_of_a_training(straight, tmp_path, monkeypatch, number, step):
    folder = tmp_path / "run"
    words = [*TRAINED, "hydra.run.dir=run"]
    assert stop_when(tmp_path, words, (folder / f"{step}.checkpoint").exists, number)
    assert not (folder / f"{step}.safetensors").exists(), "it was in the middle of it"
    monkeypatch.chdir(tmp_path)
    trained, one = [], loop._Training.step

    def count(training, state, *batch):
        trained.append(state.step)
        return one(training, state, *batch)

    monkeypatch.setattr(loop._Training, "step", count)
    assert cli.main(words) == 0
    assert files(folder) == straight
    assert trained[0] > 0, "it went on, and didn't start again"
    assert not list(folder.glob("*.checkpoint")) and not leftovers(folder)


@pytest.mark.slow
def test_another_seed_would_be_another_file(straight, tmp_path, monkeypatch):
    """The comparison can fail: files aren't equal because every run gives the same."""
    monkeypatch.chdir(tmp_path)
    assert cli.main([*(word.replace("seed=3", "seed=4") for word in TRAINED), "hydra.run.dir=run"]) == 0
    assert files(tmp_path / "run")["02-finetune.safetensors"] != straight["02-finetune.safetensors"]


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment(tmp_path):
    """Also while it starts, saves a checkpoint, writes a file or measures."""
    assert run(tmp_path, *SHORT, "hydra.run.dir=straight").returncode in (0, 1)
    expected = files(tmp_path / "straight")
    assert len(expected) == 5 + 3, "three trainings"
    rng, kills = random.Random(5), 0
    words, seconds = [*SHORT, "hydra.run.dir=run"], 1.2
    for _ in range(40):
        end = time.monotonic() + rng.uniform(0.3, seconds)
        if not stop_when(tmp_path, words, lambda end=end: time.monotonic() > end, signal.SIGKILL):
            break
        kills += 1
        seconds *= 1.1  # a slow machine must get through in the end
    assert kills >= 3
    assert files(tmp_path / "run") == expected
    assert not leftovers(tmp_path / "run"), "what a killed process was writing is cleared away"
