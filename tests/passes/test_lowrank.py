"""lowrank: the best approximation of its rank, only where it is smaller."""

import numpy as np
import pytest
from pass_graphs import calibration_data, f32, linear_graph, ops, run_pass

from mlperf_opt.errors import ConfigError, PassError
from mlperf_opt.passes.lowrank import Lowrank
from mlperf_opt.runtimes import NUMPY

NO_DATA = calibration_data(np.zeros((1, 1), np.float32))


def _rank_two(rng, m=8, k=12):
    return (rng.standard_normal((m, 2)) @ rng.standard_normal((2, k))).astype(np.float32)


def _product(graph, name):
    return graph.weights[f"{name}.weight"].dense() @ graph.weights[f"{name}.low.weight"].dense()


@pytest.mark.parametrize("settings", [{"rank": 2}, {"energy": 0.999999}])
def test_a_matrix_of_rank_two_becomes_two_thin_ones(settings, rng):
    weight = _rank_two(rng)
    graph = linear_graph((weight, np.arange(8, dtype=np.float32)))
    result = run_pass(Lowrank(**settings), graph, NO_DATA)
    assert result.stats == {"ranks": {"fc1": 2}} and ops(result.graph) == ["linear", "linear"]
    assert result.graph.weights["fc1.low.weight"].values.shape == (2, 12)
    assert result.graph.weights["fc1.weight"].values.shape == (8, 2)
    np.testing.assert_allclose(_product(result.graph, "fc1"), weight, atol=1e-5)
    x = rng.standard_normal((3, 12)).astype(np.float32)
    np.testing.assert_allclose(NUMPY.prepare(result.graph)(x), NUMPY.prepare(graph)(x), rtol=1e-4, atol=1e-4)


def test_the_error_is_the_singular_values_that_were_left_out(rng):
    """Eckart and Young: no matrix of rank r is nearer, and its distance is known."""
    weight = rng.standard_normal((10, 14)).astype(np.float32)
    after = run_pass(Lowrank(rank=3), linear_graph((weight, None)), NO_DATA).graph
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    distance = np.linalg.norm(_product(after, "fc1").astype(np.float64) - weight)
    assert distance == pytest.approx(np.sqrt((values[3:] ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("energy, rank", [(0.5, 1), (0.63, 1), (0.65, 2), (0.8, 2), (0.92, 3), (1.0, 4)])
def test_energy_chooses_the_smallest_rank_that_has_it(energy, rank):
    """Squared singular values 64, 16, 16, 4 of a hundred."""
    weight = np.zeros((20, 20), np.float32)
    weight[range(4), range(4)] = [8, 4, 4, 2]
    assert run_pass(Lowrank(energy=energy), linear_graph((weight, None)), NO_DATA).stats["ranks"] == {"fc1": rank}


def test_layers_that_would_grow_stay_as_they_are(rng):
    graph = linear_graph((_rank_two(rng), None), (rng.standard_normal((3, 8)).astype(np.float32), None))
    after = run_pass(Lowrank(), graph, NO_DATA)
    assert list(after.stats["ranks"]) == ["fc1"] and ops(after.graph) == ["linear"] * 3
    assert after.graph.weights["fc2.weight"] == graph.weights["fc2.weight"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 4}, r"fc1 \(3 x 5\) has 15 weights, at rank=4 its factors have 32: skip it, or choose a lower rank"),
        ({"energy": 1.0}, "at energy=1.0 no layer of tiny has factors smaller than itself"),
        ({"skip": ("fc2",)}, "skip=fc2: no such linear node; did you mean 'fc1'"),
        ({"skip": ("fc1",)}, "tiny has no linear layer of float32 weights of its own"),
    ],
)
def test_what_would_not_be_smaller_is_refused(settings, message, rng):
    graph = linear_graph((rng.standard_normal((3, 5)).astype(np.float32), f32(1, 2, 3)))
    with pytest.raises(PassError, match=rf"^lowrank: {message}[^\n]*$"):
        Lowrank(**settings).check(graph)


@pytest.mark.parametrize("settings", [{"energy": 0.0}, {"energy": 1.1}, {"energy": float("nan")}, {"rank": -1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Lowrank(**settings)


def test_nothing_but_zeros_has_rank_one():
    after = run_pass(Lowrank(), linear_graph((np.zeros((6, 6), np.float32), None)), NO_DATA)
    assert after.stats["ranks"] == {"fc1": 1} and not _product(after.graph, "fc1").any()
