"""The loop: it learns, keeps masks and grids, penalises matrices alone, and refuses bad settings."""

from dataclasses import replace

import numpy as np
import pytest
from training_oracles import evaluate, mean_cross_entropy, points

from mlperf_opt.data import Dataset, Split, load_data
from mlperf_opt.errors import ConfigError, DataError, GraphError
from mlperf_opt.graph import Affine, Weight, graph_hash
from mlperf_opt.networks import DigitMLP, MinimalTransformer, SimpleCNN
from mlperf_opt.settings import build_settings
from mlperf_opt.training import SGD, Frozen, TrainSettings, train

SMALL = DigitMLP(image=(1, 1, 2), sizes=(2, 8, 3))


def _small(rng):
    return SMALL.build("small", rng)


def _dense(graph):
    return {name: weight.dense() for name, weight in graph.parameters().items()}


def _images(data):
    """The points as images of 1x1x2, and as all three splits."""
    split = Split(data.train.inputs.reshape(-1, 1, 1, 2), data.train.targets)
    return Dataset(data.name, data.task, split, split, split)


POINTS = _images(points())


def _accuracy(graph, split):
    return float((evaluate(graph, _dense(graph), (split.inputs,)).argmax(axis=-1) == split.targets).mean())


@pytest.mark.parametrize("optimizer, lr", [("sgd", 0.02), ("adam", 0.01), ("adamw", 0.01)])
def test_digits_are_learnt_in_a_few_epochs(optimizer, lr, rng):
    data = load_data("digits")
    seen = []
    settings = TrainSettings(epochs=10, lr=lr, optimizer=optimizer)
    result = train(DigitMLP().build("mlp", rng), data, settings, seed=0, progress=seen.append)
    assert result.history[-1] < 0.25 * result.history[0]
    assert _accuracy(result.graph, data.calibration) > 0.9
    assert [report.epoch for report in seen] == list(range(1, 11)) and {report.epochs for report in seen} == {10}
    assert tuple(report.loss for report in seen) == result.history
    assert seen[-1].accuracy > 0.9 > seen[0].accuracy


def test_the_cnn_learns_too(rng):
    data = load_data("digits")
    result = train(SimpleCNN().build("cnn", rng), data, TrainSettings(epochs=12, lr=0.02), seed=0)
    assert result.history[-1] < 0.3 * result.history[0]
    assert _accuracy(result.graph, data.calibration) > 0.88


def test_shuffled_labels_teach_nothing(rng):
    """Sabotage: with targets dealt out at random, held-out accuracy stays near one in ten."""
    data = load_data("digits")
    shuffled = replace(data, train=Split(data.train.inputs, rng.permutation(data.train.targets)))
    result = train(DigitMLP().build("mlp", rng), shuffled, TrainSettings(epochs=10, lr=0.01), seed=0)
    assert _accuracy(result.graph, data.calibration) < 0.3


def test_a_transformer_learns_to_repeat_the_last_token(rng):
    tokens = rng.integers(0, 5, (300, 4))
    split = Split(tokens, tokens)
    data = Dataset("echo", "completion", split, split, split, prompt=1)
    network = MinimalTransformer(vocabulary=5, context=4, layers=1, dim=8, heads=2, hidden=16)
    result = train(network.build("echo", rng), data, TrainSettings(epochs=8, lr=0.02, clip=1.0), seed=0)
    assert result.history[0] > 0.2 and result.history[-1] < 0.1


def test_the_mean_loss_of_an_epoch_is_over_samples_not_batches(rng):
    """60 rows in batches of 50 and 10, moved so little that the weights stay: the mean over all 60."""
    graph = _small(rng)
    result = train(graph, POINTS, TrainSettings(epochs=1, batch=50, lr=1e-12, optimizer="sgd"), seed=0)
    expected = mean_cross_entropy(evaluate(graph, _dense(graph), (POINTS.train.inputs,)), POINTS.train.targets)
    assert result.history == pytest.approx((expected,), rel=1e-5)


def test_no_epochs_return_the_same_graph(rng):
    graph = _small(rng).with_weights(
        {
            "fc1.weight": Weight(rng.integers(-127, 128, (8, 2)).astype(np.int8), Affine(np.full(8, 0.3, np.float32), 0, 8)),
            "fc2.weight": Weight(rng.standard_normal((3, 8)).astype(np.float16)),
        }
    )
    result = train(graph, POINTS, TrainSettings(epochs=0), seed=0)
    assert graph_hash(result.graph) == graph_hash(graph) and result.history == ()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_given_graph_data_and_masks_are_untouched(optimizer, rng):
    graph, mask = _small(rng), rng.random((8, 2)) < 0.5
    before, data_before, mask_before = graph_hash(graph), replace(POINTS).sha256, mask.copy()
    settings = TrainSettings(epochs=2, optimizer=optimizer, weight_decay=0.01, l1=0.01, clip=1.0)
    result = train(graph, POINTS, settings, seed=0, projection=Frozen({"fc1.weight": mask}))
    assert graph_hash(graph) == before != graph_hash(result.graph)
    assert replace(POINTS).sha256 == data_before
    np.testing.assert_array_equal(mask, mask_before)


def test_training_is_a_function_of_the_seed(rng):
    graph, settings = _small(rng), TrainSettings(epochs=3)
    hashes = [graph_hash(train(graph, POINTS, settings, seed=seed).graph) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_masked_entries_stay_positive_zero(optimizer, rng):
    """Zero in every bit: -0.0 is a value that a file would have to keep."""
    graph = _small(rng)
    masks = {"fc1.weight": rng.random((8, 2)) < 0.5, "fc2.weight": rng.random((3, 8)) < 0.5}
    pruned = graph.with_weights({n: Weight(graph.weights[n].values * mask + np.float32(0)) for n, mask in masks.items()})
    settings = TrainSettings(epochs=3, optimizer=optimizer, weight_decay=0.1, l1=0.01)
    trained = train(pruned, POINTS, settings, seed=0, projection=Frozen(masks)).graph
    for name, mask in masks.items():
        values = trained.weights[name].values
        assert (values.view(np.uint32)[~mask] == 0).all()
        assert (values[mask] != graph.weights[name].values[mask]).all()


def test_quantized_and_float16_weights_stay_on_their_grid(rng):
    graph = _small(rng)
    scale = np.abs(graph.weights["fc1.weight"].values).max(axis=1) / np.float32(127)
    codes = np.rint(graph.weights["fc1.weight"].values / scale[:, None]).astype(np.int8)
    coded = graph.with_weights(
        {
            "fc1.weight": Weight(codes, Affine(scale, 0, 8)),
            "fc2.weight": Weight(graph.weights["fc2.weight"].values.astype(np.float16)),
        }
    )
    result = train(coded, POINTS, TrainSettings(epochs=20, lr=0.01), seed=0)
    first, second = result.graph.weights["fc1.weight"], result.graph.weights["fc2.weight"]
    assert first.values.dtype == np.int8 and second.values.dtype == np.float16
    np.testing.assert_array_equal(first.encoding.scale, scale)
    assert (first.values != codes).any() and result.history[-1] < result.history[0]


def test_l1_makes_matrices_small_and_leaves_biases_alone(monkeypatch, rng):
    """What reaches the optimizer differs by l1 * sign(weight) for matrices and by nothing for biases."""

    class Recorder(SGD):
        def update(self, weight, grad, slots, lr, step):
            records[-1].append((weight.copy(), grad.copy()))
            super().update(weight, grad, slots, lr, step)

    monkeypatch.setattr(TrainSettings, "make_optimizer", lambda _self: Recorder())
    records, graph = [], _small(rng)
    for l1 in (0.0, 0.25):
        records.append([])
        train(graph, POINTS, TrainSettings(epochs=1, batch=60, l1=l1), seed=0)
    assert len(records[0]) == 4
    for (weight, plain), (_, penalised) in zip(*records, strict=True):
        penalty = 0.25 * np.sign(weight) if weight.ndim == 2 else np.zeros_like(weight)
        np.testing.assert_allclose(penalised - plain, penalty, atol=1e-6)


def test_l1_raises_the_number_of_small_weights(rng):
    data, graph = load_data("digits"), DigitMLP().build("mlp", rng)
    small = []
    for l1 in (0.0, 0.001):
        trained = train(graph, data, TrainSettings(epochs=15, lr=0.01, l1=l1), seed=0).graph
        small.append(float((np.abs(trained.weights["fc1.weight"].values) < 0.01).mean()))
    assert small[1] > small[0] + 0.2


def test_clipping_limits_what_the_optimizer_gets(monkeypatch, rng):
    norms = []

    class Recorder(SGD):
        def update(self, weight, grad, slots, lr, step):
            norms.append(float(np.square(grad, dtype=np.float64).sum()))
            super().update(weight, grad, slots, lr, step)

    monkeypatch.setattr(TrainSettings, "make_optimizer", lambda _self: Recorder())
    train(_small(rng), POINTS, TrainSettings(epochs=1, batch=20, clip=0.01), seed=0)
    joint = np.sqrt(np.reshape(norms, (3, 4)).sum(axis=1))
    np.testing.assert_allclose(joint, 0.01, rtol=1e-4)


def test_a_weight_behind_no_output_trains_along(rng):
    """A graph may compute what it does not return; its weights have no gradient and stay."""
    graph = _small(rng)
    dead = replace(graph, outputs=("fc1",))  # eight values; fc2 is computed for nothing
    trained = train(dead, POINTS, TrainSettings(epochs=1), seed=0).graph
    np.testing.assert_array_equal(trained.weights["fc2.weight"].values, graph.weights["fc2.weight"].values)
    assert (trained.weights["fc1.weight"].values != graph.weights["fc1.weight"].values).any()


def test_a_diverging_training_never_becomes_codes(rng):
    settings = TrainSettings(epochs=30, lr=1e30, optimizer="sgd", warmup=0.0)
    with np.errstate(all="ignore"), pytest.raises(GraphError, match="not finite"):
        train(_small(rng), POINTS, settings, seed=0)


BAD = [
    *(("epochs", value) for value in (-1, 1.5, True, "3")),
    *(("batch", value) for value in (0, -1, 1.5, False)),
    *(("lr", value) for value in (0.0, -0.1, float("nan"), float("inf"))),
    *(("warmup", value) for value in (-0.1, 1.1, float("nan"))),
    *((name, value) for name in ("weight_decay", "l1", "clip") for value in (-1e-9, float("nan"), float("inf"))),
    ("shift", -1),
    ("optimizer", "rmsprop"),
]


@pytest.mark.parametrize("name, value", BAD)
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"^train\.{name}={value}: "):
        build_settings(TrainSettings, {name: value}, "train")


def test_shift_needs_images(rng):
    with pytest.raises(DataError, match=r"shift=1: only images"):
        train(_small(rng), points(), TrainSettings(shift=1), seed=0)
