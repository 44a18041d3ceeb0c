"""Dropout: where it acts, that its gradients are exact, and that no graph, file or prediction knows of it."""

import numpy as np
import pytest
from training_oracles import central_differences, mean_cross_entropy, points

from mlperf_opt import cli
from mlperf_opt.data import Dataset, Split
from mlperf_opt.errors import ConfigError
from mlperf_opt.graph import graph_hash
from mlperf_opt.networks import DigitMLP, MinimalTransformer
from mlperf_opt.training import TrainSettings, arguments, autodiff, gradients, train
from mlperf_opt.training.dropout import droppable, factors

SIZES = {"vocabulary": 5, "context": 6, "layers": 2, "dim": 4, "heads": 2, "hidden": 6}
BRANCHES = ["layer1.project", "layer1.down", "layer2.project", "layer2.down"]


def _network(**more):
    return MinimalTransformer(**SIZES, **more).build("net", np.random.default_rng(0))


def _data():
    tokens = np.random.default_rng(3).integers(0, 5, (24, 7))
    split = Split(tokens[:, :-1], tokens[:, 1:])
    return Dataset("noise", "completion", split, split, split)


@pytest.mark.parametrize("positions, first", [("learned", "positions"), ("sinusoidal", "positions"), ("rotary", "embed")])
def test_embedded_tokens_and_branches_are_dropped_and_nothing_else(positions, first):
    assert droppable(_network(positions=positions)) == dict.fromkeys([first, *BRANCHES], 4)
    assert droppable(DigitMLP().build("mlp", np.random.default_rng(0))) == {}


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_factors_keep_the_mean_and_zero_the_share(rate):
    (found,) = factors({"x": 64}, (50, 40), rate, (1, 2, 3)).values()
    kept = 256 / (256 - round(256 * rate))
    assert found.shape == (50, 40, 64) and found.dtype == np.float32
    assert set(np.unique(found).tolist()) == {0.0, float(np.float32(kept))}
    assert abs((found == 0).mean() - rate) < 0.005 and abs(found.mean() - 1) < 0.03


def test_factors_depend_on_the_seed_alone_and_a_rate_of_zero_has_none():
    one, same, other = (factors({"x": 9, "y": 9}, (3, 4), 0.5, seed) for seed in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(one["y"], same["y"])
    assert not np.array_equal(one["y"], other["y"]) and not np.array_equal(one["x"], one["y"])
    assert factors({"x": 9}, (3, 4), 0.0, (1,)) == {}


def _differs_from_central_differences(rng):
    """Return how far the gradients under dropout are from central differences, relative to the largest."""
    graph = _network()
    weights = {name: w.dense() + 0.3 * rng.standard_normal(w.values.shape) for name, w in graph.parameters().items()}
    inputs, targets = rng.integers(0, 5, (2, 6)), rng.integers(0, 5, (2, 6))
    dropped = {name: f.astype(np.float64) for name, f in factors(droppable(graph), (2, 6), 0.4, (5,)).items()}

    def loss():
        return mean_cross_entropy(gradients(graph, weights, (inputs,), targets, factors=dropped)[1], targets)

    found = gradients(graph, weights, (inputs,), targets, factors=dropped)[2]
    names = ["embed.table", "layer1.down.weight", "layer2.query.weight", "layer1.norm1.gamma"]
    expected = {name: central_differences(loss, weights[name]) for name in names}
    return max(float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in names)


def test_gradients_under_dropout_are_central_differences(rng):
    assert _differs_from_central_differences(rng) < 1e-6


def test_a_gradient_that_forgets_the_factors_would_be_noticed(rng, monkeypatch):
    plain = autodiff.backward
    monkeypatch.setattr(autodiff, "backward", lambda graph, values, d_output, _factors: plain(graph, values, d_output))
    assert _differs_from_central_differences(rng) > 0.1


def test_training_with_dropout_leaves_a_graph_without_it():
    graph, settings = _network(), TrainSettings(epochs=2, batch=6, dropout=0.3)
    result = train(graph, _data(), settings, seed=1)
    assert [node.op for node in result.graph.nodes] == [node.op for node in graph.nodes]
    again = train(graph, _data(), settings, seed=1)
    assert graph_hash(again.graph) == graph_hash(result.graph)
    other = train(graph, _data(), TrainSettings(epochs=2, batch=6), seed=1)
    assert graph_hash(other.graph) != graph_hash(result.graph)


def test_a_rate_of_zero_is_no_dropout(rng):
    graph, data = _network(), _data()
    weights = arguments(graph, {name: w.dense() for name, w in graph.parameters().items()})
    feeds = (graph, weights, (data.train.inputs,), data.train.targets)
    plain, none = gradients(*feeds)[2], gradients(*feeds, factors=factors(droppable(graph), (24, 6), 0.0, (1,)))[2]
    for name, gradient in plain.items():
        np.testing.assert_array_equal(gradient, none[name])


def test_dropout_where_nothing_can_be_dropped_is_refused():
    network = DigitMLP(image=(1, 1, 2), sizes=(2, 4, 3)).build("mlp", np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"train\.dropout=0\.1: mlp has no residual branch to drop from; expected 0"):
        train(network, points(), TrainSettings(epochs=1, dropout=0.1), seed=0)


def test_the_command_refuses_it_before_anything_is_shown_or_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "model=mlp", "train.epochs=1", "train.dropout=0.1", "save=new/w.safetensors"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == "error: train.dropout=0.1: mlp has no residual branch to drop from; expected 0\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_is_a_share(rate):
    with pytest.raises(ConfigError, match="dropout"):
        TrainSettings(dropout=rate)
