"""sensitivity: every matrix alone, on the calibration split, by the passes themselves."""

import numpy as np
import pytest
from pass_graphs import Untouchable, quality, run_pass

from mlperf_opt.data import Dataset
from mlperf_opt.passes.cluster import Cluster
from mlperf_opt.passes.profile import Profile
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.quant import Quant
from mlperf_opt.passes.sensitivity import BITS, SPARSITIES


def _rows(graph, data, **settings):
    result = run_pass(Profile(repeats=1, sensitivity=True, **settings), graph, data)
    assert result.graph is graph and list(result.tables) == ["nodes", "sensitivity"]
    return result.tables["sensitivity"]


def test_each_row_is_one_pass_on_one_matrix(cnn):
    graph, data = cnn
    rows = _rows(graph, data)
    names = list(graph.matrices())
    settings = [("sparsity", s) for s in SPARSITIES] + [("bits", b) for b in BITS]
    assert [(r["weight"], r["setting"], r["value"]) for r in rows] == [(n, *s) for n in names for s in settings]
    for row in rows[::5]:
        others = tuple(n for n in names if n != row["weight"])
        step = Prune(row["value"], skip=others) if row["setting"] == "sparsity" else Cluster(row["value"], skip=others)
        expected = quality(run_pass(step, graph, data).graph, data)
        assert row["calibration"] == pytest.approx(expected)
        assert row["change"] == pytest.approx(expected - quality(graph, data))


def test_more_zeros_and_fewer_bits_hurt(mlp):
    rows = _rows(*mlp)
    for name in ("fc1", "fc2"):
        zeros, bits = (
            [r["calibration"] for r in rows if r["node"] == name and r["setting"] == s] for s in ("sparsity", "bits")
        )
        assert zeros[0] > zeros[-1] + 0.1 and bits[-1] >= bits[0]


def test_quantized_weights_are_pruned_only(mlp):
    graph, data = mlp
    rows = _rows(run_pass(Quant(), graph, data).graph, data)
    assert {row["setting"] for row in rows} == {"sparsity"} and len(rows) == 2 * len(SPARSITIES)


def test_it_is_asked_for_and_looks_at_the_calibration_split_alone(mlp):
    graph, data = mlp
    assert list(run_pass(Profile(repeats=1), graph, data).tables) == ["nodes"]
    blind = Dataset(data.name, data.task, Untouchable(), data.calibration, Untouchable())
    np.testing.assert_equal(_rows(graph, blind), _rows(graph, data))
