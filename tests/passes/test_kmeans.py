"""k-means in one dimension against plain Lloyd over all pairs, and against the best there is."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.passes.kmeans import kmeans

STARTS = ["linear", "density", "random"]
each_start = pytest.mark.parametrize("start", STARTS)


def lloyd(values, centroids):
    """Assign each value to the nearest of all centroids (of two equally near ones the lower), average, until it stands."""
    values, centroids = np.asarray(values, np.float64), np.array(centroids, np.float64)
    while True:
        nearest = np.abs(values[:, None] - centroids).argmin(axis=1)
        moved = np.array([values[nearest == k].mean() if (nearest == k).any() else c for k, c in enumerate(centroids)])
        if np.allclose(moved, centroids, rtol=0, atol=1e-12):
            return np.array([c for k, c in enumerate(moved) if (nearest == k).any()])
        centroids = moved


def squared_error(values, centroids):
    return np.square(np.asarray(values, np.float64)[:, None] - centroids).min(axis=1).sum()


def find(values, clusters, start, seed=0):
    return kmeans(np.asarray(values, np.float32), clusters, start, np.random.default_rng(seed))


def test_linear_and_density_are_lloyds_algorithm_from_their_starts(rng):
    values = rng.standard_normal(400).astype(np.float32)
    linear = lloyd(values, np.linspace(values.min(), values.max(), 7))
    np.testing.assert_allclose(find(values, 7, "linear"), linear, rtol=1e-5, atol=1e-6)
    density = lloyd(values, [np.quantile(values.astype(np.float64), (k + 0.5) / 7) for k in range(7)])
    np.testing.assert_allclose(find(values, 7, "density"), density, rtol=1e-5, atol=1e-6)
    assert not np.allclose(linear, density)


@each_start
def test_groups_that_stand_apart_are_found(start):
    """Each of three groups by its mean; random starts are many, for one of them may be poor."""
    values = [-5.5, -4.5, -5.0, 0.25, -0.25, 7.0, 7.5, 6.5, 7.0]
    found = [find(values, 3, start, seed) for seed in range(8)]
    assert any(np.allclose(f, [-5, 0, 7]) for f in found)
    if start != "random":
        np.testing.assert_array_equal(found[0], np.float32([-5, 0, 7]))


@each_start
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32).map(lambda v: v + 0.0), min_size=1, max_size=40),
    clusters=st.integers(1, 12),
)
def test_never_worse_than_its_own_means_and_never_an_empty_cluster(start, values, clusters):
    found = find(values, clusters, start)
    assert found.dtype == np.float32 and 1 <= len(found) <= clusters
    assert (found[1:] > found[:-1]).all()
    assert min(values) <= found[0] and found[-1] <= max(values)
    different = np.unique(np.float32(values))
    if len(different) <= clusters:
        np.testing.assert_array_equal(found, different)
    elif len(found) > 1:  # one of a handful of clusters explains more than one mean does
        one = squared_error(np.float32(values), np.array([np.float64(np.float32(values).astype(np.float64).mean())]))
        assert squared_error(np.float32(values), found.astype(np.float64)) <= one * (1 + 1e-5)


def test_against_the_best_of_all_partitions():
    """Never better than the optimum, and from the best of many starts equal to it."""
    values = np.float32([0.1, 0.2, 0.9, 1.0, 1.7, 2.6, 2.7, 4.0])
    best = min(
        sum(np.square(part - part.mean()).sum() for part in np.split(values.astype(np.float64), cuts))
        for cuts in itertools.combinations(range(1, len(values)), 2)
    )
    errors = [squared_error(values, find(values, 3, "random", seed).astype(np.float64)) for seed in range(30)]
    assert min(errors) == pytest.approx(best, rel=1e-5) and min(errors) >= best * (1 - 1e-5)


def test_the_seed_decides_random_alone(rng):
    values = rng.standard_normal(300)
    for start in STARTS:
        first, same, other = (find(values, 16, start, seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, same)
        assert np.array_equal(first, other) == (start != "random")


def test_linear_keeps_the_few_large_weights_and_density_does_not(rng):
    """Why the paper starts so: large weights are few and matter."""
    values = np.concatenate([0.02 * rng.standard_normal(5000), [0.9, 0.95, 1.0]])
    largest = {start: find(values, 15, start)[-1] for start in ("linear", "density")}
    assert largest["linear"] == pytest.approx(0.95, abs=0.06) and largest["density"] < largest["linear"]
