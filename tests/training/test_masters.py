"""What moves where weights share centroids: the gradient is the sum over their places, and the zero stays."""

import numpy as np
import pytest
from training_oracles import central_differences, evaluate, mean_cross_entropy, points

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Codebook, GraphBuilder, Weight
from mlperf_opt.networks import DigitMLP, SimpleCNN
from mlperf_opt.training import TrainSettings, arguments, gradients, train
from mlperf_opt.training.masters import gradient_of, master_of, real_values, stored


def _shared(shape, centroids, rng):
    centroids = np.array(centroids, np.float32)
    return Weight(rng.integers(0, len(centroids), shape).astype(np.uint8), Codebook(centroids))


@pytest.mark.parametrize(
    "network", [DigitMLP(image=(1, 2, 3), sizes=(6, 5, 3)), SimpleCNN((2, 4, 4), (2, 3), hidden=(4,), classes=3)]
)
def test_the_gradient_of_a_centroid_is_the_central_difference(network, rng):
    """In float64, of whole networks: moving a centroid moves every weight that stands for it."""
    graph = network.build("net", rng)
    table = [-1.1, -0.4, 0.0, 0.3, 0.9]
    graph = graph.with_weights({name: _shared(graph.weights[name].values.shape, table, rng) for name in graph.matrices()})
    masters = {name: master_of(weight).astype(np.float64) for name, weight in graph.parameters().items()}
    inputs, targets = rng.standard_normal((4, *network.image)), np.array([0, 2, 1, -1])
    _, _, found = gradients(graph, arguments(graph, masters), (inputs,), targets)

    def loss():
        real = {name: real_values(graph.weights[name], master) for name, master in masters.items()}
        return mean_cross_entropy(evaluate(graph, real, (inputs,)), targets)

    for name in graph.matrices():
        gradient = gradient_of(graph.weights[name], found[name])
        expected = central_differences(loss, masters[name])
        assert abs(expected[2]) > 1e-4 and gradient[2] == 0, "the zero would move, and may not"
        np.testing.assert_allclose(np.delete(gradient, 2), np.delete(expected, 2), rtol=1e-5, atol=1e-8)
        assert gradient.dtype == np.float64 and gradient.shape == (5,)


def test_the_sum_over_the_places_by_hand():
    weight = Weight(np.array([[0, 2], [1, 2]], np.uint8), Codebook(np.array([-1, 0, 3], np.float32)))
    gradient = np.array([[1, 2], [4, 8]], np.float32)
    np.testing.assert_array_equal(gradient_of(weight, gradient), np.array([1, 0, 10], np.float32))
    assert gradient_of(weight, gradient).dtype == np.float32
    plain = Weight(gradient)
    assert gradient_of(plain, gradient) is gradient


def _points_graph(rng):
    build = GraphBuilder("tiny")
    x = build.input("x", ("N", 2), "float32")
    x = build.node("linear", "fc1", x, weight=np.zeros((8, 2), np.float32), bias=np.zeros(8, np.float32))
    x = build.node("linear", "fc2", build.node("relu", "relu", x), weight=np.zeros((3, 8), np.float32))
    graph = build.finish(x)
    table = [-0.5, -0.2, 0.0, 0.1, 0.4]
    return graph.with_weights({n: _shared(graph.weights[n].values.shape, table, rng) for n in graph.matrices()})


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_training_moves_values_not_assignments(optimizer, rng):
    graph = _points_graph(rng)
    settings = TrainSettings(epochs=20, batch=6, lr=0.02, optimizer=optimizer, weight_decay=0.001, l1=0.001)
    result = train(graph, points(), settings, seed=1)
    assert result.history[-1] < 0.8 * result.history[0]
    for name in graph.matrices():
        before, after = graph.weights[name], result.graph.weights[name]
        np.testing.assert_array_equal(after.is_zero, before.is_zero)
        groups = {code: np.unique(after.dense()[before.values == code]) for code in np.unique(before.values)}
        assert all(len(values) == 1 for values in groups.values()), "what was equal stays equal"
        moved = [values[0] != before.encoding.centroids[code] for code, values in groups.items()]
        assert sum(moved) == len(groups) - 1, "all but the zero"
        assert (np.diff(after.encoding.centroids) > 0).all()
    assert not np.array_equal(result.graph.weights["fc1.bias"].values, graph.weights["fc1.bias"].values)


def test_the_penalty_counts_every_place(rng):
    """Without data to learn from, l1 alone pulls a value by its sign times its places: SGD, one step."""
    graph = _points_graph(rng)
    steps = []
    for l1 in (0.0, 0.5):
        settings = TrainSettings(epochs=1, batch=60, lr=0.001, optimizer="sgd", l1=l1, warmup=1.0)
        steps.append(train(graph, points(), settings, seed=1).shadow["fc1.weight"])
    weight = graph.weights["fc1.weight"]
    places = np.bincount(weight.values.reshape(-1), minlength=5)
    expected = -0.001 * 0.5 * np.sign(weight.encoding.centroids) * places
    np.testing.assert_allclose(steps[1] - steps[0], expected, atol=1e-7)


def test_values_that_cross_meet_or_reach_zero_are_put_in_order():
    weight = Weight(np.array([0, 1, 2, 3, 4], np.uint8), Codebook(np.array([-2, -1, 0, 1, 2], np.float32)))
    result = stored(weight, np.array([5, -0.0, 0, -3, 5], np.float64))
    np.testing.assert_array_equal(result.dense(), np.array([5, 0, 0, -3, 5], np.float32))
    np.testing.assert_array_equal(result.encoding.centroids, np.array([-3, 0, 5], np.float32))
    assert not np.signbit(result.encoding.centroids[1]) and result.values.dtype == np.uint8


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    weight = Weight(np.array([0, 1], np.uint8), Codebook(np.array([0, 1], np.float32)))
    with pytest.raises(GraphError, match=r"^a centroid that is not finite can't be stored$"):
        weight.with_centroids(np.array([0, value]))


def test_a_master_is_a_copy_and_comes_back_as_it_was(rng):
    weight = _shared((4, 3), [-1, 0, 2], rng)
    master = master_of(weight)
    again = stored(weight, master)
    np.testing.assert_array_equal(again.values, weight.values)
    np.testing.assert_array_equal(again.encoding.centroids, weight.encoding.centroids)
    master[0] = 7  # writable, and nobody else's
    assert weight.encoding.centroids[0] == -1
