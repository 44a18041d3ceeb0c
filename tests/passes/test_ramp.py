"""Pruning while training: the schedules and the score by hand, what the ramp promises, and that it is worth it."""

import math
import signal

import numpy as np
import pytest
from pass_graphs import quality, run_pass

from mlperf_opt.errors import PassError
from mlperf_opt.graph import graph_hash
from mlperf_opt.networks import SimpleCNN
from mlperf_opt.passes import PassContext
from mlperf_opt.passes.calibration import coarse, mean_step, on_grid
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.quant import Quant
from mlperf_opt.passes.ramp import Ramp, biases, images, scores, sparsity_at
from mlperf_opt.runtimes import NUMPY

QUICK = {"schedule": "geometric", "epochs": 4, "hold": 1, "batch": 50, "every": 5, "lr": 0.003}


def _ramp(**settings):
    common = {"groups": (("w",),), "images": {"w": ()}, "biases": {"w": "b"}, "sparsity": 0.75, "schedule": "cubic"}
    rest = {"score": "magnitude", "regrow": True, "every": 10, "steps": 100, "step_ratio": 0.0}
    return Ramp(**{**common, **rest, **settings})


@pytest.mark.parametrize(
    "schedule, t, expected",
    [
        ("cubic", 0.0, 0.0),
        ("cubic", 0.5, 0.8 * (1 - 0.125)),
        ("cubic", 1.0, 0.8),
        ("geometric", 0.0, 0.0),
        ("geometric", 0.5, 1 - math.sqrt(0.2)),
        ("geometric", 1.0, 0.8),
        ("geometric", 3.0, 0.8),
        ("one_shot", 0.0, 0.8),
    ],
)
def test_schedules_by_hand(schedule, t, expected):
    assert sparsity_at(schedule, 0.8, t) == pytest.approx(expected, abs=1e-12)


def test_rate_score_by_hand():
    """One row of four kept, one of none: p = (row + 1/2) (column + 1/2) / (kept + 1), bits = 2.5 - log2 p."""
    mask = np.array([[True, True, True, True], [False] * 4])
    found = scores(np.full((2, 4), 2.0, np.float32), mask, ())
    for row, kept in enumerate((4, 0)):
        p = min((kept + 0.5) * 1.5 / 5, 0.9)
        np.testing.assert_allclose(found[row], 2 / math.sqrt(2.5 - math.log2(p)), rtol=1e-6)


def test_rate_score_knows_what_is_alike():
    """A kernel's places are one column; pixels have neighbours, up to the border."""
    kernel = np.zeros((2, 2, 3, 3), bool)
    kernel[0, 1, 1, 1] = True
    found = scores(np.ones(kernel.shape, np.float32), kernel, ())
    assert len(np.unique(found[:, 0])) == 2 == len(np.unique(found[0])) and (found[0, 1] > found[0, 0]).all()
    pixels = np.zeros((1, 25), bool)
    pixels[0, 12] = True
    found = scores(np.ones((1, 25), np.float32), pixels, (1, 5, 5)).reshape(5, 5)
    expected = np.zeros((5, 5), bool)
    expected[1:4, 1:4] = True
    np.testing.assert_array_equal(found > found[0, 0], expected)


def test_magnitude_score_is_the_magnitude(rng):
    values = rng.standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(scores(values, None, ()), np.abs(values))


def test_shapes_of_images_and_biases_are_found(mlp, cnn, transformer):
    assert images(mlp[0], list(mlp[0].matrices())) == {"fc1.weight": (1, 8, 8), "fc2.weight": ()}
    assert images(cnn[0], list(cnn[0].matrices())) == {"conv1.weight": (), "conv2.weight": (), "fc1.weight": (8, 2, 2)}
    assert set(images(transformer[0], list(transformer[0].matrices())).values()) == {()}
    assert biases(mlp[0], ["fc2.weight"]) == {"fc2.weight": "fc2.bias"}
    assert biases(transformer[0], ["embed.table"]) == {}


def test_the_last_choice_has_all_of_the_sparsity(rng):
    ramp, memory = _ramp(), {}
    shadow = {"w": rng.standard_normal((10, 10)).astype(np.float32), "b": np.zeros(10, np.float32)}
    counts = []
    for step in range(0, 100, 10):
        memory = ramp.refresh(shadow, memory, step, 100)
        counts.append(int((~memory["mask/w"]).sum()))
    assert counts == [round(100 * sparsity_at("cubic", 0.75, (step + 10) / 100)) for step in range(0, 100, 10)]
    assert counts[-1] == 75
    kept = np.abs(shadow["w"])[memory["mask/w"]]
    assert kept.min() >= np.abs(shadow["w"])[~memory["mask/w"]].max()


@pytest.mark.parametrize("regrow", [True, False])
def test_regrowth_is_a_choice(regrow):
    shadow = {"w": np.arange(1, 9, dtype=np.float32).reshape(2, 4)}
    ramp = _ramp(regrow=regrow, biases={})
    memory = ramp.refresh(shadow, {}, 90, 100)
    shadow["w"][0, 0] = 100  # it was the smallest
    later = ramp.refresh(shadow, memory, 90, 100)["mask/w"]
    assert later[0, 0] == regrow and later.sum() == 2


def test_the_grid_comes_at_half_of_the_ramp_and_loses_nobody(rng):
    shadow = {"w": rng.standard_normal((20, 20)).astype(np.float32), "b": rng.standard_normal(20).astype(np.float32)}
    ramp = _ramp(step_ratio=0.6)
    assert "step/w" not in ramp.refresh(shadow, {}, 30, 100)
    memory = ramp.refresh(shadow, {}, 40, 100)
    mask, step = memory["mask/w"], memory["step/w"]
    assert step == coarse(np.float32(0.6 * np.abs(shadow["w"][mask]).astype(np.float64).mean()))
    used = ramp.project(shadow, memory)
    np.testing.assert_array_equal(used["w"] != 0, mask)
    for array in used.values():
        np.testing.assert_allclose(array / step, np.rint(array / step), atol=1e-5)
    assert np.abs(used["w"] - shadow["w"])[mask].max() <= step * 0.5001 or np.abs(shadow["w"])[mask].min() < step / 2


def test_mean_step_and_grid_by_hand():
    values = np.array([[0, 2, -4], [0, 0, 0]], np.float32)
    assert mean_step(values, None, 0.5) == 1.5
    assert mean_step(values, 0, 0.5).tolist() == [1.5, 1.0]
    assert on_grid(np.array([0.1, -0.1, 1.4, -2.0], np.float32), np.float32(1)).tolist() == [1, -1, 1, -2]


@pytest.mark.parametrize("score", ["magnitude", "rate"])
@pytest.mark.parametrize("schedule", ["cubic", "geometric"])
def test_exactly_as_many_zeros_as_asked(cnn, schedule, score):
    settings = {**QUICK, "schedule": schedule, "score": score, "epochs": 2, "hold": 0}
    result = run_pass(Prune(sparsity=0.8, **settings), *cnn)
    assert sum(result.stats["zeros"].values()) == round(0.8 * (36 + 288 + 320))
    each = run_pass(Prune(sparsity=0.8, scope="layer", **settings), *cnn)
    assert list(each.stats["zeros"].values()) == [29, 230, 256]


def test_pruning_while_training_beats_pruning_at_once(mlp):
    graph, data = mlp
    at_once = quality(run_pass(Prune(sparsity=0.9), graph, data).graph, data)
    meanwhile = quality(run_pass(Prune(sparsity=0.9, **QUICK), graph, data).graph, data)
    assert at_once < 0.8 and meanwhile > at_once + 0.1


def test_the_grid_in_the_loop_is_the_grid_of_quant(mlp):
    """The pass hands on real values, and quant finds the step that the network was trained with."""
    graph, data = mlp
    settings = {**QUICK, "step_ratio": 0.6, "sparsity": 0.8}
    ramped = run_pass(Prune(**settings), graph, data).graph
    coded = run_pass(Quant(scheme="weight_only", granularity="tensor", bits=6, step="mean", biases="grid"), ramped, data)
    assert quality(coded.graph, data) > 0.9
    for name in ramped.matrices():
        np.testing.assert_array_equal(coded.graph.weights[name].values == 0, ramped.weights[name].values == 0)
        assert coded.graph.weights[name].encoding.scale == mean_step(ramped.weights[name].values, None, 0.6)


def test_rows_tell_of_each_epoch(mlp):
    lines = []
    result = run_pass(Prune(sparsity=0.5, **QUICK), *mlp, progress=lines.append)
    rows = result.tables["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5] and len(lines) == 5
    assert rows[-1]["estimated_bytes"] < rows[0]["estimated_bytes"]
    assert lines[-1].startswith("epoch 5/5 loss ") and "calibration" in lines[-1] and "bytes" in lines[-1]


def test_quantized_graphs_are_pruned_while_training_on_their_grid(cnn):
    graph = run_pass(Quant(), *cnn).graph
    result = run_pass(Prune(sparsity=0.5, **{**QUICK, "epochs": 1}), graph, cnn[1])
    for name in graph.matrices():
        before, after = graph.weights[name], result.graph.weights[name]
        np.testing.assert_array_equal(after.encoding.scale, before.encoding.scale)
    with pytest.raises(PassError, match="step_ratio puts weights on a grid, but they are quantized already"):
        Prune(step_ratio=0.6, **QUICK).check(graph)


def test_interrupted_it_goes_on_to_the_same_bits(cnn, tmp_path):
    graph, data = cnn
    step = Prune(sparsity=0.8, score="rate", step_ratio=0.6, **{**QUICK, "every": 7})
    straight = step(graph, PassContext(data, 0, NUMPY)).graph

    def stop(line):
        if line.startswith("epoch 3/"):
            signal.raise_signal(signal.SIGINT)

    path = tmp_path / "state.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        step(graph, PassContext(data, 0, NUMPY, stop, checkpoint=path))
    assert path.exists()
    resumed = step(graph, PassContext(data, 0, NUMPY, checkpoint=path)).graph
    assert graph_hash(resumed) == graph_hash(straight)


def test_shifts_reach_the_training(cnn):
    hashes = {graph_hash(run_pass(Prune(shift=s, **{**QUICK, "epochs": 1}), *cnn).graph) for s in (0, 1)}
    assert len(hashes) == 2


def test_convolutions_with_rate_score(rng, cnn):
    """All kinds of layers in one group."""
    network = SimpleCNN(image=(1, 8, 8), channels=(3, 4), hidden=(5,), classes=10)
    result = run_pass(Prune(sparsity=0.7, score="rate", **{**QUICK, "epochs": 1}), network.build("net", rng), cnn[1])
    assert sum(result.stats["zeros"].values()) == round(0.7 * (27 + 108 + 80 + 50))
