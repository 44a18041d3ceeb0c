"""Exact resume: an interrupted training that goes on from its checkpoint ends in the same bits."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
from training_oracles import points

from mlperf_opt.artifacts import load_arrays, load_metadata, save_arrays
from mlperf_opt.data import Dataset, Split
from mlperf_opt.errors import ArtifactError
from mlperf_opt.graph import Affine, Weight, graph_hash
from mlperf_opt.networks import DigitMLP, SimpleCNN
from mlperf_opt.training import Frozen, TrainSettings, checkpoint, train

NETWORK = SimpleCNN(image=(1, 4, 4), channels=(2,), classes=3)


def _images(seed=0, rows=40):
    rng = np.random.default_rng(seed)
    split = Split(rng.random((rows, 1, 4, 4), np.float32), rng.integers(0, 3, rows))
    return Dataset("noise", "classification", split, split, split)


def _graph(seed=0):
    return NETWORK.build("net", np.random.default_rng(seed))


def _interrupt_after(epochs):
    """Ctrl-C while an epoch is reported: one step of the next is done, and kept."""

    def progress(report):
        if report.epoch == epochs:
            signal.raise_signal(signal.SIGINT)

    return progress


SETTINGS = TrainSettings(epochs=6, batch=16, lr=0.02, weight_decay=0.01, l1=0.001, clip=0.5, shift=1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("stops", [(3,), (1, 2, 5)])
def test_stopped_and_resumed_equals_straight_through(optimizer, stops, tmp_path):
    """Every object is made anew, as another process would; weights and history agree in every bit."""
    settings = replace(SETTINGS, optimizer=optimizer)
    straight = train(_graph(), _images(), settings, seed=5)
    path = tmp_path / "state.checkpoint"
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(_graph(), _images(), settings, seed=5, checkpoint=path, progress=_interrupt_after(stop))
    seen = []
    resumed = train(_graph(), _images(), settings, seed=5, checkpoint=path, progress=seen.append)
    assert [report.epoch for report in seen] == list(range(stops[-1] + 1, 7))
    assert graph_hash(resumed.graph) == graph_hash(straight.graph)
    assert resumed.history == straight.history and len(straight.history) == 6


def test_masters_of_quantized_weights_are_resumed_unrounded(tmp_path):
    """The float32 masters are what training goes on with: rounding them at the checkpoint would lose small steps."""
    data = points()
    flat = Split(data.train.inputs.reshape(-1, 1, 1, 2), data.train.targets)
    data = Dataset("points", "classification", flat, flat, flat)
    graph = DigitMLP(image=(1, 1, 2), sizes=(2, 4, 3)).build("net", np.random.default_rng(0))
    codes = Weight(np.full((4, 2), 3, np.int8), Affine(np.full(4, 0.2, np.float32), 0, 8))
    graph = graph.with_weights({"fc1.weight": codes})
    settings, path = TrainSettings(epochs=6, lr=0.005), tmp_path / "state.checkpoint"
    straight = train(graph, data, settings, seed=0)
    with pytest.raises(KeyboardInterrupt):
        train(graph, data, settings, seed=0, checkpoint=path, progress=_interrupt_after(3))
    stored = load_arrays(path)["weight/fc1.weight"]
    assert np.abs(stored / np.float32(0.2) - np.rint(stored / np.float32(0.2))).max() > 0.01
    resumed = train(graph, data, settings, seed=0, checkpoint=path)
    assert graph_hash(resumed.graph) == graph_hash(straight.graph) and resumed.history == straight.history


def _row(report):
    """Numbers that no other epoch has, and that text must not round."""
    return {"epoch": report.epoch, "loss": report.loss, "hash": graph_hash(report.graph)}


@pytest.mark.parametrize("stops", [(3,), (1, 2, 5)])
def test_rows_of_the_epochs_before_a_resume_are_kept(stops, tmp_path):
    straight = train(_graph(), _images(), SETTINGS, seed=5, observe=_row)
    path, seen = tmp_path / "state.checkpoint", []
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path, observe=_row, progress=_interrupt_after(stop))
    resumed = train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path, observe=_row, progress=seen.append)
    assert len(seen) == 6 - stops[-1] and [row["epoch"] for row in resumed.rows] == [1, 2, 3, 4, 5, 6]
    assert resumed.rows == straight.rows and len({row["hash"] for row in resumed.rows}) == 6


@pytest.mark.parametrize("seconds, done", [(0, 9), (3600, None)])
def test_an_observation_that_fails_is_made_again(seconds, done, tmp_path):
    """All steps of its epoch may be in the checkpoint already; its row is not."""

    def failing(report):
        if report.epoch == 3:
            raise RuntimeError("full")
        return _row(report)

    straight = train(_graph(), _images(), SETTINGS, seed=5, observe=_row)
    path = tmp_path / "state.checkpoint"
    with pytest.raises(RuntimeError):
        train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path, checkpoint_seconds=seconds, observe=failing)
    assert (_steps(path) if path.exists() else None) == done
    resumed = train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path, observe=_row)
    assert resumed.rows == straight.rows and graph_hash(resumed.graph) == graph_hash(straight.graph)


def _steps(path):
    return json.loads(load_metadata(path)["progress"])["step"]


def test_a_finished_training_is_only_read(tmp_path):
    path, seen = tmp_path / "state.checkpoint", []
    done = train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path, observe=_row)
    again = train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path, observe=_row, progress=seen.append)
    assert graph_hash(again.graph) == graph_hash(done.graph) and again.history == done.history and seen == []
    assert again.rows == done.rows and len(done.rows) == 6


@pytest.mark.parametrize("seconds, written", [(0, range(1, 18)), (3600, [])])
def test_checkpoints_keep_their_distance_in_time(seconds, written, tmp_path):
    """Within an epoch too. The last one is always written: in a pipeline a later step may be interrupted."""
    path, seen = tmp_path / "state.checkpoint", []
    settings = {"checkpoint": path, "checkpoint_seconds": seconds}
    settings["stepped"] = lambda _report: seen.append(_steps(path)) if path.exists() else None
    train(_graph(), _images(), SETTINGS, seed=5, **settings)
    assert seen == list(written) and _steps(path) == 18


def test_a_checkpoint_between_epochs_of_an_older_version_is_taken(tmp_path):
    """It knows nothing of an epoch that was begun."""
    straight, path, steps = train(_graph(), _images(), SETTINGS, seed=5), tmp_path / "state.checkpoint", []

    def fail(report):
        if report.epoch == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path, checkpoint_seconds=0, progress=fail)
    arrays, metadata = load_arrays(path), load_metadata(path)
    progress = json.loads(metadata["progress"])
    assert [progress.pop(name) for name in ("loss_sum", "hits", "counted")] == [0, 0, 0]
    text = json.dumps(progress)
    save_arrays(path, arrays, metadata | {"progress": text, "sha256": checkpoint._digest(arrays, text)})
    resumed = train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path, stepped=lambda r: steps.append(r.step))
    assert graph_hash(resumed.graph) == graph_hash(straight.graph) and resumed.history == straight.history
    assert steps == list(range(7, 19))


OTHERS = {
    "seed": {"seed": 6},
    "settings": {"settings": replace(SETTINGS, lr=0.03)},
    "epochs": {"settings": replace(SETTINGS, epochs=7)},
    "weights": {"graph": _graph(1)},
    "data": {"data": _images(1)},
    "masks": {"projection": Frozen({"fc1.weight": np.zeros((3, 8), bool)})},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_training_is_refused(what, tmp_path):
    path = tmp_path / "state.checkpoint"
    given = {"graph": _graph(), "data": _images(), "settings": SETTINGS, "seed": 5}
    train(*list(given.values())[:3], seed=5, checkpoint=path)
    other = given | OTHERS[what]
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="no checkpoint of this training"):
        train(other.pop("graph"), other.pop("data"), other.pop("settings"), checkpoint=path, **other)
    assert path.read_bytes() == before


def test_a_checkpoint_with_the_same_masks_is_taken(tmp_path):
    path, masks = tmp_path / "state.checkpoint", {"fc1.weight": np.arange(24).reshape(3, 8) % 2 == 0}
    straight = train(_graph(), _images(), SETTINGS, seed=5, projection=Frozen(masks))
    with pytest.raises(KeyboardInterrupt):
        train(_graph(), _images(), SETTINGS, seed=5, projection=Frozen(masks), checkpoint=path, progress=_interrupt_after(2))
    resumed = train(_graph(), _images(), SETTINGS, seed=5, projection=Frozen(masks), checkpoint=path)
    assert graph_hash(resumed.graph) == graph_hash(straight.graph)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(share, tmp_path):
    path = tmp_path / "state.checkpoint"
    train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtifactError, match=r"state\.checkpoint"):
        train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path)


@pytest.mark.parametrize("place", [1, 0.7, 0.5])
def test_a_changed_byte_of_a_weight_is_noticed(place, tmp_path):
    path = tmp_path / "state.checkpoint"
    train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path)
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")  # the numbers begin behind the header
    data[start + int((len(data) - start - 1) * place)] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged checkpoint"):
        train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path)


@pytest.mark.parametrize("damage", ["lacks a weight", "lacks progress", "other progress"])
def test_a_checkpoint_with_other_content_is_refused(damage, tmp_path):
    path = tmp_path / "state.checkpoint"
    train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path)
    arrays, metadata = dict(load_arrays(path)), dict(load_metadata(path))
    if damage == "lacks a weight":
        del arrays["weight/fc1.weight"]
    elif damage == "lacks progress":
        del metadata["progress"]
    else:
        metadata["progress"] = metadata["progress"].replace('"epoch": 6', '"epoch": 2')
    save_arrays(path, arrays, metadata)
    with pytest.raises(ArtifactError, match="damaged checkpoint"):
        train(_graph(), _images(), SETTINGS, seed=5, checkpoint=path)
