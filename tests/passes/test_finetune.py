"""finetune: what must not move, and that the rest gets better."""

import dataclasses

import numpy as np
import pytest
from pass_graphs import quality, run_pass

from mlperf_opt.data import Split
from mlperf_opt.errors import ConfigError, PassError
from mlperf_opt.graph import Affine, Weight, graph_hash
from mlperf_opt.passes import PassContext
from mlperf_opt.passes.finetune import Finetune
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import NUMPY

QUANTS = [{}, {"granularity": "tensor"}, {"scheme": "dynamic"}, {"scheme": "weight_only"}]
each_quant = pytest.mark.parametrize("settings", QUANTS, ids=str)


def _tuned(graph, data, **settings):
    return run_pass(Finetune(**{"epochs": 2, **settings}), graph, data).graph


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_zeros_stay_zero_and_the_rest_moves(mlp, optimizer):
    graph, data = mlp
    pruned = run_pass(Prune(sparsity=0.75), graph, data).graph
    tuned = _tuned(pruned, data, optimizer=optimizer, l1=0.001)
    for name in pruned.matrices():
        before, after = pruned.weights[name].values, tuned.weights[name].values
        assert (after[before == 0] == 0).all() and not np.signbit(after[before == 0]).any()
        assert (after[before != 0] != before[before != 0]).mean() > 0.9
    assert not np.array_equal(pruned.weights["fc1.bias"].values, tuned.weights["fc1.bias"].values)


@each_quant
def test_codes_stay_codes_on_the_grid_they_had(cnn, settings):
    graph, data = cnn
    quantized = run_pass(Prune(sparsity=0.5), run_pass(Quant(**settings), graph, data).graph, data).graph
    tuned = _tuned(quantized, data, lr=0.01)
    assert tuned.nodes == quantized.nodes
    moved = 0
    for name, before in quantized.weights.items():
        after = tuned.weights[name]
        assert after.values.dtype == before.values.dtype
        if isinstance(before.encoding, Affine):
            np.testing.assert_array_equal(after.encoding.scale, before.encoding.scale)
            assert (after.encoding.axis, after.encoding.bits) == (before.encoding.axis, before.encoding.bits)
        if name.endswith((".scale", ".zero")):
            np.testing.assert_array_equal(after.values, before.values)
        if name in quantized.matrices():
            assert (after.values[before.values == 0] == 0).all()
            moved += (after.values != before.values).sum()
    assert moved > 50


def test_half_stays_half(mlp):
    graph, data = mlp
    half = run_pass(Quant(dtype="fp16"), graph, data).graph
    tuned = _tuned(half, data)
    assert {w.values.dtype.name for w in tuned.weights.values()} == {"float16"}
    assert not np.array_equal(tuned.weights["fc1.weight"].values, half.weights["fc1.weight"].values)


def test_pruning_is_made_good(cnn):
    graph, data = cnn
    pruned = run_pass(Prune(sparsity=0.75), graph, data).graph
    tuned = run_pass(Finetune(epochs=40, lr=0.005), pruned, data).graph
    assert quality(pruned, data) < quality(graph, data) - 0.2
    assert quality(tuned, data) > quality(pruned, data) + 0.2
    zeros = sum((tuned.weights[name].values == 0).sum() for name in tuned.matrices())
    assert zeros >= 483  # three quarters of 36 + 288 + 320


@each_quant
def test_a_damaged_quantized_network_is_repaired(cnn, settings):
    """Training through the codes: the gradient of every product must reach the weights."""
    graph, data = cnn
    quantized = run_pass(Quant(**settings), graph, data).graph
    rng = np.random.default_rng(8)
    damaged = {}
    for name in quantized.matrices():
        weight = quantized.weights[name]
        noise = rng.integers(-45, 46, weight.values.shape)
        damaged[name] = Weight(np.clip(weight.values + noise, -127, 127).astype(np.int8), weight.encoding)
    broken = quantized.with_weights(damaged)
    repaired = _tuned(broken, data, epochs=6, lr=0.005)
    assert quality(broken, data) < 0.8
    assert quality(repaired, data) > quality(broken, data) + 0.1
    assert quality(repaired, data) > 0.75


def test_stats_and_progress_tell_of_every_epoch(mlp):
    lines = []
    result = run_pass(Finetune(epochs=3), *mlp, progress=lines.append)
    assert len(result.stats["loss"]) == 3 and min(result.stats["loss"]) > 0
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]


def test_the_seed_decides(mlp):
    hashes = [graph_hash(run_pass(Finetune(epochs=1), *mlp, seed=seed).graph) for seed in (0, 1, 0)]
    assert hashes[0] == hashes[2] != hashes[1]


def test_the_calibration_split_is_not_trained_on(mlp):
    graph, data = mlp
    nonsense = Split(np.full_like(data.calibration.inputs, np.nan), data.calibration.targets)
    blind = dataclasses.replace(data, calibration=nonsense)
    assert graph_hash(_tuned(graph, blind)) == graph_hash(_tuned(graph, data))


def test_a_cached_network_is_refused(transformer):
    cached = run_pass(KvCache(), *transformer).graph
    with pytest.raises(PassError, match=r"^finetune: a graph with a cache can't be trained; put finetune before kv_cache$"):
        Finetune().check(cached)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": -1}, "^epochs=-1: expected a whole number >= 0"),
        ({"lr": 0.0}, "^lr=0.0: expected a number > 0"),
        ({"lr": float("nan")}, "^lr=nan: expected a number > 0"),
        ({"lr": float("inf")}, "^lr=inf: expected a number > 0"),
        ({"l1": -0.1}, "^l1=-0.1: expected a number >= 0"),
        ({"batch": 0}, "^batch=0: expected a whole number >= 1"),
    ],
)
def test_impossible_settings_are_refused_when_they_are_read(settings, message):
    with pytest.raises(ConfigError, match=message):
        Finetune(**settings)


def test_a_teacher_is_learnt_from(cnn):
    """All of the loss from the baseline's soft targets: the network moves towards it, without a label."""
    graph, data = cnn
    pruned = run_pass(Prune(sparsity=0.75), graph, data).graph
    blind = dataclasses.replace(data, train=Split(data.train.inputs, np.zeros_like(data.train.targets)))
    step = Finetune(epochs=30, lr=0.005, distill=1.0, temperature=2.0)
    tuned = step(pruned, PassContext(blind, 0, NUMPY, baseline=graph)).graph
    assert quality(tuned, data) > quality(pruned, data) + 0.2
    with pytest.raises(PassError, match="distill needs a baseline to learn from"):
        step(pruned, PassContext(blind, 0, NUMPY))


def test_shifts_warmup_and_temperature_reach_the_training(cnn):
    graph, data = cnn
    settings = [{}, {"shift": 1}, {"warmup": 0.5}, {"distill": 0.5}, {"distill": 0.5, "temperature": 5.0}]
    made = [Finetune(epochs=1, **s)(graph, PassContext(data, 0, NUMPY, baseline=graph)).graph for s in settings]
    assert len({graph_hash(each) for each in made}) == len(settings)


def test_rows_tell_of_each_epoch(mlp):
    lines = []
    result = run_pass(Finetune(epochs=2), *mlp, progress=lines.append)
    assert [row["epoch"] for row in result.tables["epochs"]] == [1, 2]
    assert result.tables["epochs"][-1]["calibration"] == pytest.approx(quality(result.graph, mlp[1]))
    assert "calibration" in lines[-1] and "bytes" in lines[-1]


@pytest.mark.parametrize("step", [Finetune(shift=1), Prune(schedule="cubic", shift=1)])
def test_shifts_of_a_text_are_refused_before_anything_runs(transformer, step):
    name = type(step).__name__.lower()
    said = rf"^{name}: shift=1: only images can be shifted, and transformer takes tokens: int64\[N,T\]$"
    with pytest.raises(PassError, match=said):
        step.check(transformer[0])
    dataclasses.replace(step, shift=0).check(transformer[0])
    Prune(shift=1).check(transformer[0])  # in one shot nothing is trained


@pytest.mark.parametrize("settings", [{"distill": 1.5}, {"distill": -0.1}, {"temperature": 0.0}, {"warmup": 2.0}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Finetune(**settings)
