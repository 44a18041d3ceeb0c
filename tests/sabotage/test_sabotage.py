"""Break one component at a time: a named check of the ordinary run must notice. Each starts from a run that passes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mlperf_opt import cli
from mlperf_opt import evaluate as evaluate_module
from mlperf_opt import runner as runner_module
from mlperf_opt.data import Split, load_data
from mlperf_opt.graph import Codebook, Dense, Weight
from mlperf_opt.ops import OPS
from mlperf_opt.passes import PASSES
from mlperf_opt.passes.base import PassResult
from mlperf_opt.training import loop as loop_module

pytestmark = pytest.mark.integration


def wrap(monkeypatch, name, change):
    """Replace a pass by one whose result is changed."""
    original = PASSES[name].__call__

    def broken(self, graph, context):
        result = original(self, graph, context)
        return PassResult(change(graph, result.graph), result.stats, result.tables)

    monkeypatch.setattr(PASSES[name], "__call__", broken)


def zeroed(_before, after):
    return after.with_weights(
        {n: Weight(np.zeros_like(after.weights[n].values), after.weights[n].encoding) for n in after.matrices()}
    )


def test_a_quantizer_that_returns_zeros_fails_quality(rows, healthy, monkeypatch):
    healthy("passes=[quant]")
    wrap(monkeypatch, "quant", zeroed)
    _, table, _ = rows("passes=[quant]")
    assert not table["quality_ok"][1] and table["broken"][1] > 400


def test_a_pruner_that_does_nothing_is_refused(rows, healthy, monkeypatch):
    healthy("passes=[prune]")
    monkeypatch.setattr("mlperf_opt.passes.prune._prune_group", lambda weights, sparsity: dict(weights))
    status, table, error = rows("passes=[prune]")
    assert status == 2 and "zeros" in error
    assert table["status"].tolist() == ["VALID", "INVALID"] and "zeros" in table["reasons"][1]


QUICK_RAMP = ("passes=[prune]", "passes.prune.schedule=cubic", "passes.prune.epochs=2", "passes.prune.batch=50")


def test_a_projection_that_does_nothing_is_refused(rows, healthy, monkeypatch):
    """Training that uses all weights all the time, and hands them on."""
    healthy(*QUICK_RAMP)
    monkeypatch.setattr("mlperf_opt.passes.ramp.Ramp.project", lambda self, shadow, memory: {})
    monkeypatch.setattr("mlperf_opt.passes.ramp.Ramp.pruned", lambda self, shadow, memory: {})
    status, table, error = rows(*QUICK_RAMP)
    assert status == 2 and "zeros instead of" in error
    assert table["status"].tolist() == ["VALID", "INVALID"]


def test_a_ramp_whose_masks_are_not_the_promised_ones_is_refused(rows, monkeypatch):
    monkeypatch.setattr("mlperf_opt.passes.ramp.sparsity_at", lambda schedule, target, t: target / 2)
    status, _, error = rows(*QUICK_RAMP)
    assert status == 2 and "zeros instead of" in error


def test_finetuning_that_forgets_the_zeros_is_refused(rows, healthy, monkeypatch):
    words = ("passes=[prune,finetune]", "passes.finetune.epochs=1")
    healthy(*words)
    monkeypatch.setattr("mlperf_opt.training.projection.Frozen.project", lambda self, shadow, memory: {})
    status, _, error = rows(*words)
    assert status == 2 and "fewer zeros" in error


SHARED = ("passes=[cluster,finetune]", "passes.finetune.epochs=1")


def test_shared_values_that_never_move_are_noticed(rows, healthy, monkeypatch):
    healthy(*SHARED)
    original = loop_module.gradient_of

    def frozen(weight, gradient):
        return original(weight, gradient) * isinstance(weight.encoding, Dense)

    monkeypatch.setattr(loop_module, "gradient_of", frozen)
    status, _, error = rows(*SHARED)
    assert status == 2 and "no shared value has moved" in error


def test_a_zero_that_is_trained_along_is_refused(rows, monkeypatch):
    """Pruned weights that come back to life by their common centroid."""
    words = ("passes=[prune,cluster,finetune]", "passes.finetune.epochs=1")
    original = loop_module.gradient_of

    def moving(weight, gradient):
        """As if no centroid were 0."""
        if isinstance(weight.encoding, Dense):
            return gradient
        return original(Weight(weight.values, Codebook(weight.encoding.centroids + np.float32(9))), gradient)

    monkeypatch.setattr(loop_module, "gradient_of", moving)
    status, _, error = rows(*words)
    assert status == 2 and "fewer zeros" in error


def test_clusters_that_are_all_one_value_fail_quality(rows, healthy, monkeypatch):
    healthy("passes=[cluster]")
    monkeypatch.setattr("mlperf_opt.passes.cluster.kmeans", lambda values, *_: np.float32([np.abs(values).mean()]))
    _, table, _ = rows("passes=[cluster]")
    assert not table["quality_ok"][1]


def test_tidying_that_loses_a_constant_is_invalid(rows, monkeypatch):
    """Pruned so far that units die, with biases that matter."""
    words = ("passes=[prune,tidy]", "passes.prune.sparsity=0.97")
    status, table, _ = rows(*words)
    assert status == 0 and (table["status"] == "VALID").all() and table["parameters"][2] < table["parameters"][1]
    monkeypatch.setattr("mlperf_opt.passes.units.constants", lambda graph, layer: np.zeros(layer.units(graph)))
    _, table, _ = rows(*words)
    assert table["status"][2] == "INVALID" and "must leave the outputs as they are" in table["reasons"][2]


# the split for calibration is the smaller one
CACHED = ("model=transformer", "passes=[kv_cache]", "runtime=numpy", "measure.split=calibration")


@pytest.mark.parametrize(
    "op, broken",
    [
        ("cache_write", lambda original: lambda cache, new, position, lengths: cache),
        ("cache_write", lambda original: lambda c, new, position, n: original(c, new, np.zeros_like(position), n)),
        ("advance", lambda original: lambda position, lengths: position),
        (
            "cached_attention",
            lambda original: lambda q, k, v, p, heads: original(q, k, v, np.maximum(p - 1, 0), heads=heads),
        ),
    ],
    ids=["drops every token", "writes at place 0", "never advances", "looks one place short"],
)
def test_a_broken_cache_fails_exactness(rows, healthy, monkeypatch, op, broken):
    healthy(*CACHED)
    monkeypatch.setitem(OPS, op, replace(OPS[op], forward=broken(OPS[op].forward)))
    status, table, _ = rows(*CACHED)
    assert status == 1 and table["status"][1] == "INVALID"
    assert "must leave the outputs as they are" in table["reasons"][1]


def test_a_window_that_hides_nothing_is_held_to_that(rows, healthy, monkeypatch):
    """12 tokens and 4 sinks are all of the context: exact for this network, whatever the pass may be for others."""
    job = (*CACHED, "passes.kv_cache.window=12")
    healthy(*job)
    original = OPS["cached_attention"].forward

    def forgetful(*arrays, window, **settings):
        return original(*arrays, window=window - 6, **settings)

    monkeypatch.setitem(OPS, "cached_attention", replace(OPS["cached_attention"], forward=forgetful))
    status, table, _ = rows(*job)
    assert status == 1 and "must leave the outputs as they are" in table["reasons"][1]


def test_a_pass_that_claims_to_be_exact_is_checked(rows, healthy, monkeypatch):
    healthy("passes=[profile]")
    wrap(monkeypatch, "profile", zeroed)
    _, table, _ = rows("passes=[profile]")
    assert table["status"][1] == "INVALID" and "must leave the outputs" in table["reasons"][1]


@pytest.mark.parametrize(
    "spoil", [np.zeros_like, lambda y: np.where(np.arange(y.size).reshape(y.shape) == 0, y, 0).astype(y.dtype)]
)
def test_timed_outputs_that_differ_are_invalid(rows, healthy, monkeypatch, spoil):
    """All zeros, and only the first element right: what a check of one element would let pass."""
    healthy("passes=[quant]")
    original = evaluate_module.Subject.query

    def query(self, index):
        original(self, index)
        self.timed_outputs = {k: spoil(v) for k, v in self.timed_outputs.items()}

    monkeypatch.setattr(evaluate_module.Subject, "query", query)
    _, table, _ = rows("passes=[quant]")
    assert (table["status"] == "INVALID").all() and table["reasons"].str.contains("differs from the quality run").all()


def test_outputs_that_are_no_numbers_are_invalid(rows, monkeypatch):
    original = evaluate_module.Subject.run
    monkeypatch.setattr(evaluate_module.Subject, "run", lambda self, x: original(self, x) * np.float32("nan"))
    status, table, _ = rows("passes=[quant]")
    assert status == 1 and (table["status"] == "INVALID").all() and table["reasons"].str.contains("not a number").all()


def test_a_clock_that_stands_still_is_an_error(rows, monkeypatch):
    original = evaluate_module.time_pair
    monkeypatch.setattr(evaluate_module, "time_pair", lambda *a, **k: original(*a, **k, clock=iter_clock()))
    status, _, error = rows("passes=[quant]")
    assert status == 2 and "clock" in error


def iter_clock():
    """A clock that moves between windows but not within them would lie; this one never moves after a start."""
    return lambda: 0.0


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_file_that_lost_a_byte_or_bit_is_refused(rows, healthy, monkeypatch, spoil):
    healthy("passes=[quant]")
    original = runner_module.load_graph

    def damaged(path):
        path.write_bytes(spoil(path.read_bytes()))
        return original(path)

    monkeypatch.setattr(runner_module, "load_graph", damaged)
    status, _, error = rows("passes=[quant]")
    assert status == 2 and "00-baseline.safetensors" in error


def test_shuffled_labels_fall_to_chance(rows, monkeypatch):
    data = load_data("digits")
    shuffled = np.random.default_rng(0).permutation(data.test.targets)
    broken = replace(data, test=Split(data.test.inputs, shuffled))
    monkeypatch.setattr("mlperf_opt.config.load_data", lambda name, root: broken)
    _, table, _ = rows("passes=[quant]")
    assert table["quality_high"].max() < 0.2


def test_a_pass_that_changes_its_input_is_stopped(rows, monkeypatch):
    """It is a defect of ours, not of the user's: it keeps its traceback."""

    def vandal(self, graph, context):
        graph.weights["fc1.weight"].values[:] = 0
        return PassResult(graph)

    monkeypatch.setattr(PASSES["prune"], "__call__", vandal)
    with pytest.raises(ValueError, match="read-only"):
        rows("passes=[prune]")


def test_an_invalid_row_of_a_sweep_is_told_by_the_exit_status(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = ["-m", "passes=[profile]", "seed=0,1", "hydra.sweep.dir=s", "measure.seconds=0.004"]
    assert cli.main(sweep) == 0
    wrap(monkeypatch, "profile", zeroed)
    assert cli.main(sweep) == 1
    assert pd.read_csv(tmp_path / "s" / "summary.csv")["status"].tolist() == ["INVALID"] * 2
