"""Projection: the forward pass sees what it allows, the gradient goes to all shadow weights, a resumed run goes on."""

import signal
from dataclasses import dataclass

import numpy as np
import pytest
from training_oracles import points

from mlperf_opt.data import Dataset, Split
from mlperf_opt.errors import ArtifactError
from mlperf_opt.graph import graph_hash
from mlperf_opt.networks import DigitMLP
from mlperf_opt.training import Frozen, TrainSettings, loop, train

SETTINGS = TrainSettings(epochs=4, batch=16, lr=0.02, weight_decay=0.01)


def _data():
    split = points().train
    flat = Split(split.inputs.reshape(-1, 1, 1, 2), split.targets)
    return Dataset("points", "classification", flat, flat, flat)


def _graph():
    return DigitMLP(image=(1, 1, 2), sizes=(2, 8, 3)).build("net", np.random.default_rng(0))


@dataclass(frozen=True)
class Largest:
    """The larger half of fc1 in magnitude, on a grid: chosen anew from the shadow weights."""

    every: int = 3
    identity: str = "largest"

    def refresh(self, shadow, memory, step, total):
        weight = np.abs(shadow["fc1.weight"])
        count = memory.get("count", np.zeros((), np.int64)) + 1
        return {"mask": weight >= np.median(weight), "step": np.float32(weight.max() / 3).reshape(()), "count": count}

    def project(self, shadow, memory):
        codes = np.rint(shadow["fc1.weight"] / memory["step"])
        return {"fc1.weight": np.where(memory["mask"], codes * memory["step"], np.float32(0))}


def _recorded(monkeypatch):
    """Return the list of (weights that the forward pass uses, gradients) of all steps to come."""
    seen = []

    def recording(graph, weights, *rest):
        loss, logits, grads = real(graph, weights, *rest)
        seen.append(({name: array.copy() for name, array in weights.items()}, {n: g.copy() for n, g in grads.items()}))
        return loss, logits, grads

    real = loop.gradients
    monkeypatch.setattr(loop, "gradients", recording)
    return seen


def test_forward_is_projected_and_every_shadow_weight_gets_a_gradient(monkeypatch):
    seen = _recorded(monkeypatch)
    result = train(_graph(), _data(), SETTINGS, seed=0, projection=Largest())
    for weights, grads in seen:
        assert (weights["fc1.weight"] == 0).mean() >= 0.5
        assert len(np.unique(weights["fc1.weight"])) <= 7
        assert grads["fc1.weight"].shape == (8, 2)
    pruned = seen[0][0]["fc1.weight"] == 0
    moved = result.shadow["fc1.weight"] != _graph().weights["fc1.weight"].values
    assert moved[pruned].mean() > 0.5  # dead units of the start get none
    expected = Largest().project(result.shadow, result.memory)["fc1.weight"]
    np.testing.assert_array_equal(result.graph.weights["fc1.weight"].values, expected)


def test_it_is_refreshed_every_so_many_steps():
    """60 rows in batches of 16: 4 steps an epoch, 16 in all, refreshed before steps 1, 4, 7, 10, 13 and 16."""
    assert train(_graph(), _data(), SETTINGS, seed=0, projection=Largest()).memory["count"] == 6
    assert train(_graph(), _data(), SETTINGS, seed=0, projection=Largest(every=16)).memory["count"] == 1
    assert train(_graph(), _data(), SETTINGS, seed=0, projection=Largest(every=0)).memory["count"] == 1


def test_what_was_zero_comes_back_when_its_shadow_grows(monkeypatch):
    seen = _recorded(monkeypatch)
    train(_graph(), _data(), TrainSettings(epochs=30, batch=16, lr=0.05), seed=0, projection=Largest())
    first, last = (seen[place][0]["fc1.weight"] != 0 for place in (0, -1))
    assert (last & ~first).any()


@pytest.mark.parametrize("stop", range(1, 16))
def test_resumed_in_the_middle_of_a_projection_ends_in_the_same_bits(stop, tmp_path):
    """An epoch has 4 steps and a refresh comes every 3: before the checkpoint, or just behind it."""
    straight = train(_graph(), _data(), SETTINGS, seed=0, projection=Largest())
    path = tmp_path / "state.checkpoint"

    def interrupt(report):
        if report.step == stop:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(_graph(), _data(), SETTINGS, seed=0, projection=Largest(), checkpoint=path, stepped=interrupt)
    assert path.exists()
    resumed = train(_graph(), _data(), SETTINGS, seed=0, projection=Largest(), checkpoint=path)
    assert graph_hash(resumed.graph) == graph_hash(straight.graph) and resumed.history == straight.history
    assert resumed.memory["count"] == straight.memory["count"]
    for name, array in straight.shadow.items():
        np.testing.assert_array_equal(resumed.shadow[name], array)
    with pytest.raises(ArtifactError, match="no checkpoint of this training"):
        train(_graph(), _data(), SETTINGS, seed=0, projection=Largest(identity="other"), checkpoint=path)


def test_reports_hold_the_projected_network():
    reports = []
    result = train(_graph(), _data(), SETTINGS, seed=0, projection=Largest(), progress=reports.append)
    assert graph_hash(reports[-1].graph) == graph_hash(result.graph)
    assert all((report.graph.weights["fc1.weight"].values == 0).mean() >= 0.5 for report in reports)


def test_frozen_masks_are_told_apart():
    masks = {"a": np.array([True, False]), "b": np.array([True, True])}
    assert Frozen(masks).identity == Frozen(dict(reversed(masks.items()))).identity
    assert Frozen(masks).identity != Frozen({"a": masks["b"], "b": masks["a"]}).identity
