"""fuse: what it says it did, and that other passes work before and behind it."""

from dataclasses import replace

import numpy as np
import pytest
from pass_graphs import ops, run_pass

from mlperf_opt.data import Split
from mlperf_opt.passes.finetune import Finetune
from mlperf_opt.passes.fuse import Fuse
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.passes.profile import Profile
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import NUMPY, stepwise

QUANTS = [{}, {"scheme": "dynamic"}, {"scheme": "weight_only"}, {"dtype": "fp16"}, {"granularity": "tensor"}]


def test_says_what_it_fused(mlp, cnn, transformer):
    assert run_pass(Fuse(), *mlp).stats == {"fused": ["fc1+relu1"], "removed": [], "nodes": [4, 3]}
    assert run_pass(Fuse(), *cnn).stats["fused"] == ["conv1+relu1", "conv2+relu2"]
    result = run_pass(Fuse(), *transformer)
    assert result.stats["fused"] == ["layer1.up+layer1.gelu", "layer2.up+layer2.gelu"]
    assert "gelu" not in ops(result.graph)


def test_the_profile_shows_it(mlp):
    graph = run_pass(Fuse(), *mlp).graph
    rows = run_pass(Profile(repeats=2), graph, mlp[1]).tables["nodes"]
    assert [(row["node"], row["op"]) for row in rows] == [("flatten", "flatten"), ("fc1", "linear"), ("fc2", "linear")]


@pytest.mark.parametrize("settings", QUANTS)
@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
def test_quant_gives_the_same_codes_before_and_after(request, model, settings):
    graph, data = request.getfixturevalue(model)
    quant = Quant(**settings)
    first = run_pass(quant, run_pass(Fuse(), graph, data).graph, data).graph
    last = run_pass(Fuse(), run_pass(quant, graph, data).graph, data).graph
    for name, weight in last.weights.items():
        if name in first.weights:
            np.testing.assert_array_equal(first.weights[name].values, weight.values)
    rows = data.calibration.inputs[:50]
    np.testing.assert_array_equal(NUMPY.prepare(first)(rows), NUMPY.prepare(last)(rows))
    assert [(n.op, n.attributes) for n in first.nodes] == [(n.op, n.attributes) for n in last.nodes]


def test_a_skipped_product_goes_by_its_name(mlp):
    graph = run_pass(Fuse(), *mlp).graph
    assert "fc1.weight" in run_pass(Quant(skip=("fc1",)), graph, mlp[1]).graph.weights
    pruned = run_pass(Prune(sparsity=0.5, skip=("fc1",)), graph, mlp[1]).graph
    assert (pruned.weights["fc1.weight"].values == graph.weights["fc1.weight"].values).all()


@pytest.mark.parametrize("settings", [None, {}, {"scheme": "dynamic"}])
@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
def test_training_goes_through_the_activation(request, model, settings):
    """The same steps with and without fusion: the same weights, bit for bit."""
    graph, data = request.getfixturevalue(model)
    data = replace(data, train=Split(data.train.inputs[:512], data.train.targets[:512]))
    if settings is not None:
        graph = run_pass(Quant(**settings), graph, data).graph
    tune = Finetune(epochs=1, batch=64)
    plain = run_pass(tune, graph, data).graph
    fused = run_pass(tune, run_pass(Fuse(), graph, data).graph, data).graph
    assert any((plain.weights[n].values != w.values).any() for n, w in graph.parameters().items())
    for name in fused.parameters():
        np.testing.assert_array_equal(fused.weights[name].values, plain.weights[name].values)


@pytest.mark.parametrize("order", [(Fuse(), KvCache()), (KvCache(), Fuse())])
def test_a_cache_in_both_orders(transformer, order):
    graph, data = transformer
    rows = data.calibration.inputs[:20]
    for step in order:
        graph = run_pass(step, graph, data).graph
    np.testing.assert_allclose(stepwise(NUMPY.prepare(graph), rows), NUMPY.prepare(transformer[0])(rows), atol=1e-4)
    assert "gelu" not in ops(graph) and graph.state
