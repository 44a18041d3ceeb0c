"""The training loop: learns, keeps zeros, resumes to the same bits."""

import signal
from dataclasses import replace

import numpy as np
import pytest

from mlperf_opt.data import Split, load_data
from mlperf_opt.errors import ArtifactError, ConfigError
from mlperf_opt.graph import graph_hash
from mlperf_opt.networks import DigitMLP
from mlperf_opt.training import Frozen, TrainSettings, train

DIGITS = load_data("digits")


def network(seed=0):
    return DigitMLP().build("mlp", np.random.default_rng(seed))


def test_it_learns_and_leaves_its_input_alone():
    graph = network()
    before = graph_hash(graph)
    result = train(graph, DIGITS, TrainSettings(epochs=8, lr=0.01), seed=0)
    assert graph_hash(graph) == before
    assert result.history[-1] < 0.3 * result.history[0]


def test_shuffled_labels_are_not_learnt():
    targets = np.random.default_rng(0).permutation(DIGITS.train.targets)
    shuffled = replace(DIGITS, train=Split(DIGITS.train.inputs, targets))
    assert train(network(), shuffled, TrainSettings(epochs=8, lr=0.01), seed=0).history[-1] > 1.5


def test_masked_weights_stay_positive_zero():
    mask = np.random.default_rng(0).random((32, 64)) < 0.5
    weight = train(
        network(), DIGITS, TrainSettings(epochs=2), seed=0, projection=Frozen({"fc1.weight": mask})
    ).graph.weights["fc1.weight"]
    zeros = weight.values[~mask]
    assert not zeros.view(np.uint32).any()
    assert (weight.values[mask] != 0).all()


def test_l1_makes_small_weights():
    plain, penalised = (
        train(network(), DIGITS, TrainSettings(epochs=20, lr=0.01, l1=l1), seed=0).graph.weights["fc1.weight"].values
        for l1 in (0.0, 1e-3)
    )
    assert (np.abs(penalised) < 1e-3).mean() > 5 * (np.abs(plain) < 1e-3).mean()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_resumed_training_ends_in_the_same_bits(optimizer, tmp_path):
    settings = TrainSettings(epochs=5, optimizer=optimizer, weight_decay=0.01, shift=1, clip=1.0)
    whole = train(network(), DIGITS, settings, seed=3)
    path = tmp_path / "half.checkpoint"

    def stop(report):
        if report.epoch == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(network(), DIGITS, settings, seed=3, checkpoint=path, progress=stop)
    assert path.exists()
    resumed = train(network(), DIGITS, settings, seed=3, checkpoint=path)
    assert resumed.history == whole.history
    assert graph_hash(resumed.graph) == graph_hash(whole.graph)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    path = tmp_path / "other.checkpoint"
    train(network(), DIGITS, TrainSettings(epochs=1), seed=0, checkpoint=path)
    with pytest.raises(ArtifactError, match="no checkpoint of this training"):
        train(network(), DIGITS, TrainSettings(epochs=1), seed=1, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="other.checkpoint"):
        train(network(), DIGITS, TrainSettings(epochs=1), seed=0, checkpoint=path)


@pytest.mark.parametrize(
    "setting", [{"lr": 0.0}, {"lr": float("nan")}, {"l1": -1.0}, {"batch": 0}, {"warmup": 2.0}, {"shift": -1}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        TrainSettings(**setting)
