"""kv_cache: the graph it makes, and that nothing else changes."""

import numpy as np
import pytest
from pass_graphs import calibration_data, ops, run_pass

from mlperf_opt.errors import PassError
from mlperf_opt.graph import GraphBuilder
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.ops import Spec
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import NUMPY, stepwise

NO_DATA = calibration_data(np.zeros((1, 1), np.int64))
TOKENS = np.random.default_rng(1).integers(0, 27, (5, 12))


def _network(**sizes):
    """Weights of spread 1, so that attention is far from uniform and content matters."""
    graph = MinimalTransformer(**sizes).build("net", np.random.default_rng(3))
    rng = np.random.default_rng(4)
    grown = {}
    for name, weight in graph.weights.items():
        grown[name] = type(weight)(weight.values + rng.normal(size=weight.values.shape).astype(np.float32) * 0.3)
    return graph.with_weights(grown)


def _cached(graph):
    return run_pass(KvCache(), graph, NO_DATA).graph


def test_the_state_is_explicit(transformer):
    graph = run_pass(KvCache(), *transformer).graph
    found = {state.name: (state.spec, state.update) for state in graph.state}
    pair = Spec(("N", 2, "L", 16), "float32")  # 2 heads of width 16
    expected = {"position": (Spec(("N",), "int64"), "position.next")}
    for layer in (1, 2):
        for kind in ("keys", "values"):
            expected[f"layer{layer}.attention.{kind}"] = (pair, f"layer{layer}.attention.{kind}.next")
    assert found == expected
    assert dict(graph.inputs) == {"tokens": Spec(("N", "T"), "int64"), "lengths": Spec(("N",), "int64")}
    assert graph.outputs == transformer[0].outputs and graph.context == 16


def test_every_layer_writes_and_reads_its_own_state(transformer):
    graph = run_pass(KvCache(), *transformer).graph
    for layer in (1, 2):
        at = f"layer{layer}.attention"
        assert graph.node(at).op == "cached_attention"
        assert graph.node(at).inputs == (f"layer{layer}.query", f"{at}.keys.next", f"{at}.values.next", "position")
        assert graph.node(f"{at}.keys.next").inputs == (f"{at}.keys", f"layer{layer}.key", "position", "lengths")
        assert graph.node(f"{at}.values.next").inputs == (f"{at}.values", f"layer{layer}.value", "position", "lengths")
    assert graph.node("positions").argument("offset") == "position"
    assert ops(graph)[-1] == "advance" and "attention" not in ops(graph)


def test_weights_are_the_same_objects(transformer):
    graph = run_pass(KvCache(), *transformer).graph
    assert list(graph.weights) == list(transformer[0].weights)
    assert all(graph.weights[name] is weight for name, weight in transformer[0].weights.items())


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("sizes", [{}, {"layers": 3}, {"layers": 1, "heads": 4}, {"heads": 1, "dim": 8}], ids=str)
def test_tokens_one_by_one_give_what_the_whole_sequence_gives(positions, sizes):
    graph = _network(positions=positions, **sizes)
    expected = NUMPY.prepare(graph)(TOKENS)
    assert np.abs(expected[:, 1:] - expected[:, :-1]).max() > 0.1, "the places differ"
    executable = NUMPY.prepare(_cached(graph))
    np.testing.assert_allclose(stepwise(executable, TOKENS), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(executable(TOKENS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("earlier", [0, 3])
def test_an_earlier_token_still_matters(earlier):
    """A cache that lost it, or attended to all alike, would give the same logits."""
    executable = NUMPY.prepare(_cached(_network()))
    other = TOKENS.copy()
    other[:, earlier] = (other[:, earlier] + 1) % 27
    first, second = (stepwise(executable, tokens)[:, -1] for tokens in (TOKENS, other))
    assert (np.abs(first - second).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("scheme", ["static", "dynamic", "weight_only"])
def test_a_quantized_network_decodes_as_it_computes(transformer, scheme):
    graph, data = transformer
    quantized = run_pass(Quant(scheme=scheme), graph, data).graph
    rows = data.calibration.inputs[:20]
    expected = NUMPY.prepare(quantized)(rows)
    found = stepwise(NUMPY.prepare(_cached(quantized)), rows)
    assert (found.argmax(axis=-1) == expected.argmax(axis=-1))[:, 8:].mean() >= 0.99
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_second_cache_is_refused(transformer):
    cached = run_pass(KvCache(), *transformer).graph
    with pytest.raises(PassError, match=r"^kv_cache: transformer has a cache already$"):
        KvCache().check(cached)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_network_without_attention_is_refused(request, model):
    with pytest.raises(PassError, match=f"^kv_cache: {model} has no attention whose keys and values could be kept$"):
        KvCache().check(request.getfixturevalue(model)[0])


def test_attention_that_looks_ahead_is_refused():
    build = GraphBuilder("encoder")
    x = build.input("x", ("N", "T", 4), "float32")
    graph = build.finish(build.node("attention", "look", x, x, x, heads=2, causal=False))
    with pytest.raises(PassError, match=r"^kv_cache: attention 'look' is not causal"):
        KvCache().check(graph)
