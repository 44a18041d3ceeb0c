"""cluster: how many values a matrix may have, which, and what stays as it is."""

import numpy as np
import pytest
from pass_graphs import calibration_data, f32, linear_graph, ops, quality, run_pass

from mlperf_opt.artifacts import save_graph
from mlperf_opt.errors import ConfigError, PassError
from mlperf_opt.graph import Codebook, Dense, graph_hash
from mlperf_opt.passes.cluster import Cluster
from mlperf_opt.passes.finetune import Finetune
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.quant import Quant

NO_DATA = calibration_data(np.zeros((1, 1), np.float32))


def _clustered(graph, data=NO_DATA, **settings):
    return run_pass(Cluster(**settings), graph, data).graph


@pytest.mark.parametrize("start", ["linear", "density", "random"])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_so_many_values_at_most_and_zero_for_the_zeros_alone(mlp, bits, start):
    graph = run_pass(Prune(sparsity=0.6), *mlp).graph
    shared = _clustered(graph, bits=bits, start=start)
    for name in graph.matrices():
        before, after = graph.weights[name], shared.weights[name]
        assert isinstance(after.encoding, Codebook) and len(after.encoding.centroids) <= 2**bits
        np.testing.assert_array_equal(after.is_zero, before.values == 0)
        assert not np.signbit(after.dense()[after.is_zero]).any()
    assert ops(shared) == ops(graph)


def test_every_weight_has_the_nearest_value_and_every_value_is_a_mean(mlp):
    graph = run_pass(Prune(sparsity=0.6), *mlp).graph
    shared = _clustered(graph, bits=4)
    for name in graph.matrices():
        before, after = graph.weights[name].values.astype(np.float64), shared.weights[name]
        others = after.encoding.centroids[after.encoding.centroids != 0].astype(np.float64)
        moved = np.abs(before - after.dense())[before != 0]
        np.testing.assert_allclose(moved, np.abs(before[before != 0][:, None] - others).min(axis=1), atol=1e-7)
        for place, centroid in enumerate(after.encoding.centroids):
            if centroid:
                assert before[after.values == place].mean() == pytest.approx(centroid, abs=1e-6)


def test_a_small_weight_does_not_become_zero():
    graph = linear_graph((f32([0, 0.01, 5], [6, -7, 8]), None))
    shared = _clustered(graph, bits=2)  # three values beside zero
    np.testing.assert_array_equal(shared.weights["fc1.weight"].is_zero, [[True, False, False], [False, False, False]])


def test_fewer_different_weights_than_clusters_stay_exact_and_it_says_so():
    weight = f32([0, 0.5, -0.25], [0.5, 0, 2])
    result = run_pass(Cluster(bits=3), linear_graph((weight, None)), NO_DATA)
    np.testing.assert_array_equal(result.graph.weights["fc1.weight"].dense(), weight)
    np.testing.assert_array_equal(result.graph.weights["fc1.weight"].encoding.centroids, f32(-0.25, 0, 0.5, 2))
    assert result.notes == ("fc1.weight: 3 different weights need no 7 clusters, each keeps its value",)
    assert result.stats["clusters"]["fc1.weight"]["centroids"] == 3


def test_as_many_different_weights_as_clusters_are_no_news():
    result = run_pass(Cluster(bits=2), linear_graph((f32([0, 0.5, -0.25], [0.5, 0, 2]), None)), NO_DATA)
    assert result.stats["clusters"]["fc1.weight"]["exact"] and result.notes == ()


@pytest.mark.parametrize("value", [0.0, 1.5, -2.0])
def test_a_constant_matrix(value):
    shared = _clustered(linear_graph((np.full((3, 2), value, np.float32), None)))
    np.testing.assert_array_equal(shared.weights["fc1.weight"].dense(), np.full((3, 2), value, np.float32))
    np.testing.assert_array_equal(shared.weights["fc1.weight"].encoding.centroids, np.unique([0.0, value]))


def test_a_mean_of_exactly_zero_joins_the_zeros():
    """With one cluster for -1, 1, and another two far away."""
    graph = linear_graph((f32([-1, 1, 100], [101, -100, -101]), None))
    weight = _clustered(graph, bits=2).weights["fc1.weight"]
    np.testing.assert_array_equal(weight.encoding.centroids, f32(-100.5, 0, 100.5))
    np.testing.assert_array_equal(weight.is_zero, [[True, True, False], [False, False, False]])


def test_bits_of_single_layers_by_weight_or_node(cnn):
    shared = _clustered(*cnn, bits=3, layers={"conv1": 8, "conv2.weight": 6}, skip=("fc1",))
    counts = {name: len(shared.weights[name].encoding.centroids) for name in ("conv1.weight", "conv2.weight")}
    assert counts["conv1.weight"] == 37, "all of its 36 weights, and zero"
    assert 8 < counts["conv2.weight"] <= 64
    assert shared.weights["fc1.weight"] is cnn[0].weights["fc1.weight"]
    assert len(_clustered(*cnn, bits=3).weights["fc1.weight"].encoding.centroids) == 8


@pytest.mark.parametrize("biases, dtype", [("float32", np.float32), ("fp16", np.float16)])
def test_biases_stay_or_are_halved(mlp, biases, dtype):
    graph, shared = mlp[0], _clustered(*mlp, biases=biases)
    for name in ("fc1.bias", "fc2.bias"):
        assert isinstance(shared.weights[name].encoding, Dense)
        np.testing.assert_array_equal(shared.weights[name].values, graph.weights[name].values.astype(dtype))


def test_a_bias_beyond_fp16_is_refused():
    graph = linear_graph((np.ones((2, 2), np.float32), f32(1, 7e4)))
    with pytest.raises(PassError, match=r"^cluster: weight 'fc1.bias' holds values beyond 65504, the end of fp16$"):
        _clustered(graph, biases="fp16")


def test_the_seed_decides_a_random_start(mlp):
    hashes = [graph_hash(run_pass(Cluster(start="random"), *mlp, seed=seed).graph) for seed in (0, 1, 0)]
    assert hashes[0] == hashes[2] != hashes[1]


def test_fewer_values_are_fewer_bytes_and_finetuning_makes_them_good(mlp, tmp_path):
    graph, data = mlp
    pruned = run_pass(Prune(sparsity=0.5), graph, data).graph
    shared = _clustered(pruned, data, bits=2, start="density")
    tuned = run_pass(Finetune(epochs=15, lr=0.005), shared, data).graph
    sizes = [save_graph(g, tmp_path / f"{i}.safetensors").weights_bytes for i, g in enumerate((pruned, shared, tuned))]
    assert sizes[1] < sizes[0] / 6 and sizes[2] < sizes[0] / 6
    assert quality(tuned, data) > quality(shared, data)
    assert quality(tuned, data) > quality(graph, data) - 0.05


def test_pruning_after_it_gives_its_zero(mlp):
    pruned = run_pass(Prune(sparsity=0.9), _clustered(*mlp), mlp[1]).graph
    zeros = sum(int(pruned.weights[name].is_zero.sum()) for name in pruned.matrices())
    assert zeros == round(0.9 * (64 * 32 + 32 * 10))


@pytest.mark.parametrize(
    "before, message",
    [
        (Quant(scheme="weight_only"), "cluster: fc1.weight is quantized already; put cluster before what quantizes"),
        (Quant(dtype="fp16"), "cluster: fc1.weight is quantized already; put cluster before what quantizes"),
        (Cluster(), "cluster: fc1.weight is quantized already; put cluster before what quantizes"),
    ],
)
def test_quantized_weights_are_refused(mlp, before, message):
    with pytest.raises(PassError, match=f"^{message}$"):
        Cluster().check(run_pass(before, *mlp).graph)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"skip": ("fc3",)}, "cluster: skip=fc3: no such weight or node; did you mean 'fc2'"),
        ({"layers": {"fc1.wieght": 4}}, "cluster: layers=fc1.wieght: no such weight or node; did you mean 'fc1.weight'"),
        ({"skip": ("fc1", "fc2.weight")}, "cluster: nothing is left to cluster, skip names every matrix"),
    ],
)
def test_names_that_do_not_exist_are_refused(mlp, settings, message):
    with pytest.raises(PassError, match=f"^{message}"):
        Cluster(**settings).check(mlp[0])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bits": 1}, "^bits=1: expected 2 to 8"),
        ({"bits": 9}, "^bits=9: expected 2 to 8"),
        ({"layers": {"conv1": 0}}, "^layers.conv1=0: expected 2 to 8"),
    ],
)
def test_impossible_bits_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Cluster(**settings)


def test_training_a_ramp_on_shared_weights_is_refused(mlp):
    with pytest.raises(PassError, match=r"^prune: weights that share centroids [^\n]*put it before cluster$"):
        Prune(schedule="cubic").check(_clustered(*mlp))
