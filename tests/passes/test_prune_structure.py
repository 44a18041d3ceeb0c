"""prune by structure: the graph that is left, by hand, and what is refused."""

import numpy as np
import pytest
from pass_graphs import calibration_data, f32, linear_graph, run_pass

from mlperf_opt.errors import ConfigError, PassError
from mlperf_opt.graph import Affine, Weight
from mlperf_opt.networks import DigitMLP, MinimalTransformer, SimpleCNN
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import NUMPY

NO_DATA = calibration_data(np.zeros((1, 1), np.float32))
LENET = SimpleCNN(image=(1, 28, 28), channels=(6, 8), kernel=5, padding=0, hidden=(12,), classes=10)
MLP = DigitMLP(image=(1, 2, 3), sizes=(6, 8, 5, 4))


def _pruned(graph, **settings):
    return run_pass(Prune(**settings), graph, NO_DATA)


def _shapes(graph):
    return [graph.weights[name].values.shape for name in graph.matrices()]


def test_units_of_the_smallest_norms_go_with_their_columns():
    graph = linear_graph((f32([3, 4], [0, 2], [1, 0]), f32(1, 2, 3)), (f32([1, 6, 0], [2, 8, 1]), f32(5, 6)))
    result = _pruned(graph, structure="neuron", keep=(2,))  # 5 * sqrt(5), 2 * 10, 1 * 1
    assert result.graph.weights["fc1.weight"].values.tolist() == [[3, 4], [0, 2]]
    assert result.graph.weights["fc1.bias"].values.tolist() == [1, 2]
    assert result.graph.weights["fc2.weight"].values.tolist() == [[1, 6], [2, 8]]
    assert result.graph.weights["fc2.bias"].values.tolist() == [5, 6]
    assert result.stats == {"removed": {"fc1": 1}}


def test_all_scores_are_those_of_the_given_network():
    """fc1's first unit is read by fc2's second alone, which goes: that doesn't change what the first is worth."""
    graph = linear_graph((f32([9], [1]), None), (f32([0, 1], [1, 0]), None), (f32([10, 0.1]), None))
    kept = _pruned(graph, structure="neuron", keep=(1, 1)).graph
    assert kept.weights["fc1.weight"].values.tolist() == [[9]]
    assert kept.weights["fc2.weight"].values.tolist() == [[0]]


@pytest.mark.parametrize(
    "settings, shapes",
    [
        ({"structure": "channel", "keep": (2, 3)}, [(2, 1, 5, 5), (3, 2, 5, 5), (12, 3 * 16), (10, 12)]),
        ({"structure": "neuron", "keep": (4,)}, [(6, 1, 5, 5), (8, 6, 5, 5), (4, 8 * 16), (10, 4)]),
        ({"structure": "channel", "sparsity": 0.5}, [(3, 1, 5, 5), (4, 3, 5, 5), (12, 4 * 16), (10, 12)]),
        ({"structure": "channel", "sparsity": 0.99}, [(1, 1, 5, 5), (1, 1, 5, 5), (12, 16), (10, 12)]),
        ({"structure": "channel", "skip": ("conv1",), "keep": (3,)}, [(6, 1, 5, 5), (3, 6, 5, 5), (12, 3 * 16), (10, 12)]),
        ({"structure": "neuron", "sparsity": 0.0}, [(6, 1, 5, 5), (8, 6, 5, 5), (12, 8 * 16), (10, 12)]),
    ],
    ids=str,
)
def test_the_graph_shrinks(settings, shapes, rng):
    graph = LENET.build("lenet", rng)
    after = _pruned(graph, **settings).graph
    assert _shapes(after) == shapes
    assert NUMPY.prepare(after)(rng.standard_normal((2, 1, 28, 28)).astype(np.float32)).shape == (2, 10)
    assert (after.macs({"N": 1}) < graph.macs({"N": 1})) == (shapes != _shapes(graph))


def test_channels_behind_a_flatten_are_the_right_columns(rng):
    """Filters that are all zero, with a bias of zero, can be removed without a trace: anything else would show."""
    graph = LENET.build("lenet", rng)
    values = graph.weights["conv2.weight"].values.copy()
    values[[1, 2, 5]] = 0
    graph = graph.with_weights({"conv2.weight": Weight(values)})
    after = _pruned(graph, structure="channel", keep=(5,), skip=("conv1",)).graph
    x = rng.standard_normal((2, 1, 28, 28)).astype(np.float32)
    np.testing.assert_allclose(NUMPY.prepare(after)(x), NUMPY.prepare(graph)(x), rtol=1e-4, atol=1e-5)


def test_classes_never_go(rng):
    graph = MLP.build("mlp", rng)
    assert _shapes(_pruned(graph, structure="neuron", sparsity=0.99).graph) == [(1, 6), (1, 1), (4, 1)]


@pytest.mark.parametrize(
    "network, settings, message",
    [
        (MLP, {"structure": "neuron", "keep": (3,)}, r"keep=\[3\]: expected a number for each of fc1, fc2$"),
        (MLP, {"structure": "neuron", "keep": (3, 9)}, r"keep=\[3, 9\]: fc2 has 5 neurons"),
        (MLP, {"structure": "channel"}, "net has no layer whose channels could be removed"),
        (MLP, {"structure": "neuron", "skip": ("fc1", "fc2")}, "net has no layer whose neurons could be removed; the last"),
        (DigitMLP(image=(1, 1, 4), sizes=(4, 3)), {"structure": "neuron"}, "net has no layer .* outputs are the classes"),
        (MLP, {"structure": "n:m"}, "fc1.weight has 6 inputs, which m=4 does not divide; skip it or choose another m"),
        (MLP, {"structure": "n:m", "m": 3, "skip": ("fc1",)}, "fc2.weight has 8 inputs, which m=3 does not divide"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(network, settings, message, rng):
    with pytest.raises(PassError, match=rf"^prune: {message}[^\n]*$"):
        Prune(**settings).check(network.build("net", rng))


def test_integer_products_keep_their_units(rng):
    graph = MLP.build("mlp", rng)
    data = calibration_data(rng.random((8, 1, 2, 3), np.float32))
    with pytest.raises(PassError, match="could be removed; put it before quant"):
        Prune(structure="neuron").check(run_pass(Quant(), graph, data).graph)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sparsity": 1.0}, "sparsity=1.0: expected 0 to less than 1"),
        ({"keep": (3,)}, r"keep=\[3\]: expected no counts unless structure=neuron or channel"),
        ({"structure": "neuron", "keep": (0,)}, r"keep=\[0\]: expected whole numbers >= 1"),
        ({"structure": "n:m", "n": 4, "m": 4}, "n=4: expected 1 to less than m=4"),
        ({"structure": "n:m", "n": 0}, "n=0: expected 1 to less than m=4"),
        ({"structure": "n:m", "schedule": "cubic"}, "schedule=cubic: expected one_shot, as n:m needs"),
        ({"structure": "channel", "schedule": "geometric"}, "schedule=geometric: expected one_shot, as channel needs"),
        ({"score": "rate"}, "score=rate: expected magnitude, or schedule=cubic or geometric"),
        ({"step_ratio": 0.6}, "step_ratio=0.6: expected 0, or schedule=cubic or geometric"),
        ({"schedule": "cubic", "epochs": 0}, "epochs=0: expected a whole number >= 1"),
        ({"schedule": "cubic", "hold": -1}, "hold=-1: expected a whole number >= 0"),
        ({"schedule": "cubic", "every": 0}, "every=0: expected a whole number >= 1"),
        ({"schedule": "cubic", "lr": 0.0}, "lr=0.0: expected a number > 0"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Prune(**settings)


def test_two_of_four_by_hand():
    values = f32([1, -4, 3, 2, 0, 0, 0, 5], [7, 7, 7, 7, -1, 2, -3, 4])
    after = _pruned(linear_graph((values, None)), structure="n:m").graph.weights["fc1.weight"].values
    assert after.tolist() == [[0, -4, 3, 0, 0, 0, 0, 5], [0, 0, 7, 7, 0, 0, -3, 4]]


@pytest.mark.parametrize("n, m", [(1, 2), (2, 4), (1, 4), (3, 5)])
def test_every_group_keeps_its_n_largest(n, m, rng):
    values = rng.standard_normal((6, 20)).astype(np.float32)
    result = _pruned(linear_graph((values, None)), structure="n:m", n=n, m=m)
    after = result.graph.weights["fc1.weight"].values.reshape(-1, m)
    assert ((after != 0).sum(axis=1) == n).all()
    assert result.stats == {"zeros": {"fc1.weight": 120 * (m - n) // m}}
    for group, kept in zip(np.abs(values).reshape(-1, m), after, strict=True):
        assert set(np.abs(kept[kept != 0])) == set(np.sort(group)[-n:])


def test_patterns_of_codes_go_by_what_they_stand_for():
    weight = Weight(np.array([[100, 3, 90, 2]], np.int8), Affine(f32(0.5), 0, 8))
    graph = linear_graph((np.ones((1, 4), np.float32), None)).with_weights({"fc1.weight": weight})
    assert _pruned(graph, structure="n:m").graph.weights["fc1.weight"].values.tolist() == [[100, 0, 90, 0]]


def test_a_graph_with_a_cache_is_pruned_at_once_or_not_at_all(rng):
    network = MinimalTransformer(vocabulary=5, context=4, layers=1, dim=4, heads=2, hidden=6)
    cached = run_pass(KvCache(), network.build("net", rng), NO_DATA).graph
    assert _pruned(cached).graph.state
    with pytest.raises(PassError, match="a graph with a cache can't be trained; put it before kv_cache"):
        Prune(schedule="cubic").check(cached)
