"""Every runtime agrees with an evaluation of the graph written here: one `OPS` forward after the other."""

from functools import cache

import numpy as np
import pytest
import yaml

from mlperf_opt.config import build_config, load
from mlperf_opt.errors import GraphError, SessionError
from mlperf_opt.graph import Affine, Codebook, GraphBuilder
from mlperf_opt.ops import OPS
from mlperf_opt.passes import PassContext
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import NUMPY, RUNTIMES, RuntimeOptions, complete, continuations, intermediate_values, stepwise

pytestmark = pytest.mark.integration

MODELS = {"mlp": "digits", "cnn": "digits", "transformer": "reverse"}
BEFORE = {
    "none": {},
    "static": {"quant": {}},
    "static-tensor-mse": {"quant": {"granularity": "tensor", "calibration": "mse"}},
    "dynamic": {"quant": {"scheme": "dynamic"}},
    "weight_only": {"quant": {"scheme": "weight_only"}},
    "fp16": {"quant": {"dtype": "fp16"}},
    "prune": {"prune": {"sparsity": 0.5}},
    "static-prune": {"quant": {}, "prune": {}},
    "cluster": {"prune": {"sparsity": 0.5}, "cluster": {"bits": 4}},
    "cluster-fp16": {"cluster": {"bits": 6, "biases": "fp16"}},
}
REAL = ("none", "fp16", "prune", "cluster", "cluster-fp16")  # no value between layers is rounded to codes
VARIANTS = [(model, before, cached) for model in MODELS for before in BEFORE for cached in (False, True)]
VARIANTS = [v for v in VARIANTS if v[0] == "transformer" or not v[2]]
each_variant = pytest.mark.parametrize("model, before, cached", VARIANTS)
each_cached = pytest.mark.parametrize("before", BEFORE)
each_runtime = pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=list(RUNTIMES))


@cache
def _graph(model, before, cached):
    sizes = yaml.safe_load((resource_dir("conf") / "model" / f"{model}.yaml").read_text(encoding="utf-8"))
    sizes.pop("defaults", None)
    passes = {**BEFORE[before], **({"kv_cache": {}} if cached else {})}
    plain = {"model": sizes, "data": {"name": MODELS[model]}, "runtime": {}, "measure": {}, "passes": passes, "seed": 0}
    config = build_config(plain)
    graph, data = load(config)
    for step in config.steps:
        graph = step.apply(graph, PassContext(data, 0, NUMPY)).graph
    return graph, data.calibration.inputs


def _argument(graph, name):
    """What the argument of a node stands for, decoded from what the weight stores."""
    weight_name, _, part = name.partition(":")
    weight = graph.weights[weight_name]
    if part == "codes":
        return weight.values
    if part == "scale":
        return weight.encoding.scale
    if isinstance(weight.encoding, Codebook):
        return np.take(weight.encoding.centroids, weight.values)
    real = weight.values.astype(np.float32)
    if isinstance(weight.encoding, Affine):
        scale = weight.encoding.scale
        if weight.encoding.axis is not None:
            shape = [1] * real.ndim
            shape[weight.encoding.axis] = -1
            scale = scale.reshape(shape)
        real = real * scale
    return real


def _evaluate(graph, feeds):
    """Every value of one call, given the inputs and the state."""
    values = dict(feeds)
    for node in graph.nodes:
        arrays = []
        for name in node.inputs:
            arrays.append(None if name == "" else values[name].copy() if name in values else _argument(graph, name))
        values[node.output] = OPS[node.op].forward(*arrays, **node.attributes)
    return values


def _stepwise_by_hand(graph, tokens, capacity):
    """Logits (N, T, V) of one token after the other, carrying the state."""
    rows, time = tokens.shape
    sizes = {"N": rows, "L": capacity}
    state = {s.name: np.zeros([sizes.get(d, d) for d in s.spec.shape], s.spec.dtype) for s in graph.state}
    logits = []
    for t in range(time):
        values = _evaluate(graph, {"tokens": tokens[:, t : t + 1], "lengths": np.ones(rows, np.int64), **state})
        state = {s.name: values[s.update] for s in graph.state}
        logits.append(values[graph.outputs[0]][:, 0])
    return np.stack(logits, axis=1)


def test_every_runtime_goes_by_its_name():
    assert {name: runtime.name for name, runtime in RUNTIMES.items()} == {name: name for name in RUNTIMES}
    assert RUNTIMES["numpy"] is NUMPY


@each_runtime
@each_variant
def test_a_call_is_the_ops_one_by_one(runtime, model, before, cached):
    graph, inputs = _graph(model, before, cached)
    rows = inputs[:5]
    executable = runtime.prepare(graph)
    first = executable(rows)
    if cached:  # a call is a fresh prefill of whole rows
        expected = _stepwise_by_hand(graph, rows, rows.shape[1])
    else:
        (name,) = graph.inputs
        expected = _evaluate(graph, {name: rows})[graph.outputs[0]]
    assert first.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-4 if before in REAL else 0.05)
    again = executable(rows)
    np.testing.assert_array_equal(again, first)


@each_runtime
@each_variant
def test_observing_tells_of_every_node_and_gives_the_same(runtime, model, before, cached):
    graph, inputs = _graph(model, before, cached)
    executable, seen = runtime.prepare(graph), []

    def note(node, value, nanoseconds):
        seen.append((node.output, value.dtype == graph.specs[node.output].dtype, nanoseconds >= 0))

    observed, called = executable.observe(note, inputs[:3]), executable(inputs[:3])
    if executable.notes and before in REAL:  # all rows at once may run sparse where a chunk of them runs dense
        np.testing.assert_allclose(observed, called, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(observed, called)
    assert seen == [(node.output, True, True) for node in graph.nodes]


@each_runtime
@each_cached
def test_decoding_is_the_ops_token_by_token(runtime, before):
    graph, inputs = _graph("transformer", before, True)
    tokens = inputs[:4]
    expected = _stepwise_by_hand(graph, tokens, 16)
    # another order of summation may move a rounding to codes, in a runtime that is not the ops themselves
    coarse = before == "dynamic" and runtime is not NUMPY
    found = stepwise(runtime.prepare(graph), tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=0.05 * np.abs(expected).max() if coarse else 1e-4)


@each_runtime
def test_every_row_has_its_own_position(runtime):
    """Rows of unequal prompts, continued together, equal each row alone through the graph without a cache."""
    graph, inputs = _graph("transformer", "none", True)
    plain = _graph("transformer", "none", False)[0]
    lengths = np.array([3, 9, 1])
    tokens = inputs[:3]
    session = runtime.prepare(graph).start(3, 16)
    got = [session.prefill(tokens[:, :9], lengths)]
    for step in range(3):
        got.append(session.decode(tokens[np.arange(3), lengths + step]))
    assert session.positions.tolist() == [6, 12, 4]
    for row, length in enumerate(lengths):
        alone = _evaluate(plain, {"tokens": tokens[row : row + 1, : length + 3]})["logits"][0]
        np.testing.assert_allclose([g[row] for g in got], alone[length - 1 :], rtol=1e-4, atol=1e-4)


@each_runtime
def test_truncating_forgets_what_came_after(runtime):
    graph, inputs = _graph("transformer", "none", True)
    session, fresh = (runtime.prepare(graph).start(2, 16) for _ in range(2))
    session.prefill(inputs[:2, :10])
    session.truncate(np.array([4, 4]))
    assert session.positions.tolist() == [4, 4]
    fresh.prefill(inputs[:2, :4])
    np.testing.assert_allclose(session.decode(inputs[:2, 4]), fresh.decode(inputs[:2, 4]), rtol=1e-5, atol=1e-5)


@each_runtime
def test_sessions_do_not_share_their_state(runtime):
    graph, inputs = _graph("transformer", "none", True)
    executable = runtime.prepare(graph)
    one, other = executable.start(1, 16), executable.start(1, 16)
    one.prefill(inputs[:1, :8])
    other.prefill(inputs[1:2, :3])
    expected = _stepwise_by_hand(graph, inputs[:1, :9], 16)[:, -1]
    np.testing.assert_allclose(one.decode(inputs[:1, 8]), expected, rtol=1e-4, atol=1e-4)
    # per attention (2 layers) keys and values: rows x capacity x width 32 floats; and the position
    assert one.state_bytes == 2 * 2 * 16 * 32 * 4 + 8


@each_runtime
@pytest.mark.parametrize(
    "act, message",
    [
        (lambda s, t: s.prefill(t[:, :0]), "the prompt is empty"),
        (lambda s, t: s.prefill(t[:1]), r"prefill takes tokens \(2, T\)"),
        (lambda s, t: s.prefill(t[:, :4], np.array([0, 1])), "row 0: a prompt of 0 tokens; expected 1 to 4"),
        (lambda s, t: s.prefill(t[:, :4], np.array([1, 5])), "row 1: a prompt of 5 tokens; expected 1 to 4"),
        (lambda s, t: s.prefill(t[:, :4], np.array([1])), r"one length per row \(2\)"),
        (lambda s, t: s.prefill(t[:, :9]), "the cache is full: row 0 holds 0 of 8 tokens, 9 more"),
        (lambda s, t: [s.prefill(t[:, :8]), s.decode(t[:, 0])], "the cache is full: row 0 holds 8 of 8"),
        (lambda s, t: s.decode(t[:, :1]), r"decode takes one token per row \(2\)"),
        (lambda s, t: s.truncate(1), "row 0: can't truncate to 1 tokens; it holds 0"),
        (lambda s, t: s.truncate(-1), "can't truncate to -1"),
    ],
)
def test_a_session_refuses_what_is_beyond_its_limits(runtime, act, message):
    graph, inputs = _graph("transformer", "none", True)
    with pytest.raises(SessionError, match=message):
        act(runtime.prepare(graph).start(2, 8), inputs[:2])


@each_runtime
@pytest.mark.parametrize(
    "model, cached, batch, length, message",
    [
        ("transformer", True, 0, 8, "a batch of 0: expected at least 1"),
        ("transformer", True, 1, 0, "max_length=0: expected 1 to 16"),
        ("transformer", True, 1, 17, "max_length=17: expected 1 to 16"),
        ("transformer", False, 1, 8, "transformer has no cache.*add kv_cache"),
        ("mlp", False, 1, 8, "mlp has no cache"),
    ],
)
def test_a_session_that_cannot_be_is_refused(runtime, model, cached, batch, length, message):
    with pytest.raises(SessionError, match=message):
        runtime.prepare(_graph(model, "none", cached)[0]).start(batch, length)


@each_runtime
def test_a_wrong_number_of_inputs_is_refused(runtime):
    graph, inputs = _graph("mlp", "none", False)
    with pytest.raises(GraphError, match="mlp takes 1 inputs, got 2"):
        runtime.prepare(graph)(inputs[:1], inputs[:1])


@each_runtime
@pytest.mark.parametrize("model", MODELS)
def test_a_batch_of_none_gives_none(runtime, model):
    graph, inputs = _graph(model, "none", False)
    expected = NUMPY.prepare(graph)(inputs[:0])
    assert runtime.prepare(graph)(inputs[:0]).shape == expected.shape
    assert runtime.configured(RuntimeOptions(threads=2)).prepare(graph)(inputs[:0]).shape == expected.shape


@pytest.mark.parametrize("cached", [False, True])
@each_runtime
def test_observing_refuses_a_token_that_does_not_exist(runtime, cached):
    graph, _ = _graph("transformer", "none", cached)
    with pytest.raises(GraphError, match=r"token ids must be 0\.\.26"):
        runtime.prepare(graph).observe(lambda *_: None, np.full((1, 3), 99))


@pytest.mark.parametrize("model", MODELS)
def test_observing_the_compiled_runtime_refuses_another_type_or_shape(model):
    """Its kernels read memory, and know no types."""
    graph, inputs = _graph(model, "none", False)
    executable = RUNTIMES["compiled"].prepare(graph)
    for wrong in (inputs[:2].astype(np.float16), inputs[:2, ..., None]):
        with pytest.raises(GraphError, match=f"{model} takes"):
            executable.observe(lambda *_: None, wrong)


@each_runtime
@pytest.mark.parametrize("before", ["none", "static", "dynamic"])
def test_completion_is_the_same_with_and_without_a_cache(runtime, before):
    prompts = _graph("transformer", "none", False)[1][:20, :9]
    found = [complete(runtime.prepare(_graph("transformer", before, cached)[0]), prompts, 8) for cached in (False, True)]
    assert found[0].shape == (20, 8)
    assert (found[0] == found[1]).mean() >= (1.0 if before == "none" else 0.97)
    assert (found[0] == prompts[:, 7::-1]).all(axis=1).mean() >= 0.9, "the words, backwards"
    steps = list(continuations(runtime.prepare(_graph("transformer", before, True)[0]), prompts, 3))
    np.testing.assert_array_equal(np.stack(steps, axis=1), found[1][:, :3])


def test_intermediate_values_are_those_of_the_nodes_and_inputs():
    build = GraphBuilder("tiny")
    x = build.input("x", ("N", 2), "float32")
    y = build.node("linear", "double", x, weight=np.eye(2, dtype=np.float32) * 2)
    graph = build.finish(build.node("relu", "relu", y))
    found = intermediate_values(graph, {"x", "double"}, np.array([[1, -3]], np.float32))
    assert {name: value.tolist() for name, value in found.items()} == {"x": [[1, -3]], "double": [[2, -6]]}
