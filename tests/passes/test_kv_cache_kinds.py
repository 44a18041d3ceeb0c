"""kv_cache in float16 and int8, and with a window: against a decoder that is written out, in every runtime."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from cache_oracle import decode
from pass_graphs import calibration_data, run_pass

from mlperf_opt.errors import ConfigError, GraphError, SessionError
from mlperf_opt.graph import Weight, graph_hash
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.onnx_export import export
from mlperf_opt.ops import OPS, Spec
from mlperf_opt.passes import kv_cache
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import NUMPY, RUNTIMES, complete, difference, is_quantized, may_flip, stepwise
from mlperf_opt.runtimes import session as session_module
from mlperf_opt.runtimes.compiled import attention_ops

HEADS, CONTEXT = 4, 40
TOKENS = np.random.default_rng(1).integers(0, 13, (3, 30))
DATA = calibration_data(np.random.default_rng(2).integers(0, 13, (8, 30)))
WINDOWS = [(0, 1), (0, 7), (1, 6), (4, 5), (3, 12)]
each_runtime = pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=list(RUNTIMES))
each_kind = pytest.mark.parametrize("positions, kv_heads", [("learned", None), ("rotary", None), ("rotary", 2)])


@cache
def network(positions, kv_heads=None):
    """Grown weights: attention is far from uniform, and every token counts."""
    sizes = MinimalTransformer(13, CONTEXT, 2, 32, HEADS, 24, positions, kv_heads)
    graph = sizes.build("net", np.random.default_rng(3))
    rng = np.random.default_rng(4)
    noise = {n: rng.standard_normal(w.values.shape).astype(np.float32) * 0.25 for n, w in graph.weights.items()}
    return graph.with_weights({n: Weight(w.values + noise[n]) for n, w in graph.weights.items()})


@cache
def cached(positions, kv_heads=None, **settings):
    return run_pass(KvCache(**settings), network(positions, kv_heads), DATA).graph


@cache
def _streamed(positions, kv_heads, sinks, window):
    graph = network(positions, kv_heads)
    return np.stack([decode(graph, row, HEADS, sinks=sinks, window=window) for row in TOKENS])


@each_kind
def test_the_oracle_without_a_window_is_the_network(positions, kv_heads):
    expected = NUMPY.prepare(network(positions, kv_heads))(TOKENS)
    np.testing.assert_allclose(_streamed(positions, kv_heads, 0, None), expected, atol=1e-4)


@each_runtime
@each_kind
@pytest.mark.parametrize("sinks, window", WINDOWS)
def test_a_window_is_a_list_that_drops_its_oldest(runtime, positions, kv_heads, sinks, window):
    """At every place: token by token, as a whole, and as prompts of unlike lengths that go on."""
    expected = _streamed(positions, kv_heads, sinks, window)
    executable = runtime.prepare(cached(positions, kv_heads, window=window, sinks=sinks))
    np.testing.assert_allclose(stepwise(executable, TOKENS), expected, atol=1e-4)
    np.testing.assert_allclose(executable(TOKENS), expected, atol=1e-4)
    session, lengths, rows = executable.start(3, 30), np.array([25, 1, 9]), np.arange(3)
    np.testing.assert_allclose(session.prefill(TOKENS[:, :25], lengths), expected[rows, lengths - 1], atol=1e-4)
    for _ in range(4):
        logits = session.decode(TOKENS[rows, lengths])
        np.testing.assert_allclose(logits, expected[rows, lengths], atol=1e-4)
        lengths += 1
    more = np.array([1, 4, 8])
    padded = np.stack([np.resize(TOKENS[n, at : at + count], 8) for n, at, count in zip(rows, lengths, more, strict=True)])
    np.testing.assert_allclose(session.prefill(padded, more), expected[rows, lengths + more - 1], atol=1e-4)


@each_runtime
def test_a_window_goes_on_beyond_the_context(runtime):
    """Five times the context, in the memory that the first tokens took, the same as if the text had begun anywhere."""
    tokens = np.random.default_rng(5).integers(0, 13, (1, 5 * CONTEXT))
    expected = decode(network("rotary", 2), tokens[0], HEADS, sinks=3, window=12)
    session = runtime.prepare(cached("rotary", 2, window=12, sinks=3)).start(1, 10**12)
    held = session.state_bytes
    for place in range(tokens.shape[1]):
        np.testing.assert_allclose(session.decode(tokens[:, place])[0], expected[place], atol=2e-4)
    assert session.state_bytes == held
    short = runtime.prepare(cached("rotary", 2, window=12, sinks=3)).start(1, 15)
    assert held == short.state_bytes, "sinks + window places"


def test_a_state_has_no_more_places_than_the_text():
    graph = cached("rotary", window=12, sinks=3)
    sizes = [NUMPY.prepare(graph).start(1, length).state_bytes for length in (5, 15, 16)]
    assert sizes[0] - 8 == (sizes[1] - 8) // 3 and sizes[1] == sizes[2]


@each_runtime
def test_positions_that_end_with_the_context_end_the_session(runtime):
    executable = runtime.prepare(cached("learned", window=12, sinks=3))
    with pytest.raises(SessionError, match="max_length=41: expected 1 to 40, the context of net"):
        executable.start(1, CONTEXT + 1)
    with pytest.raises(SessionError, match="don't fit the context of 40"):
        complete(executable, TOKENS, 12)


@each_runtime
def test_what_has_left_the_window_cannot_be_gone_back_to(runtime):
    executable = runtime.prepare(cached("rotary", window=5, sinks=2))
    session = executable.start(2, 100)
    session.prefill(TOKENS[:2, :12], np.array([12, 7]))
    session.truncate(np.array([12, 4]))  # the first as it is; the second has lost nothing yet
    for length in (3, 7, 11):
        with pytest.raises(
            SessionError, match=f"row 0: what {length} tokens would see has left the window; expected 0 to 2"
        ):
            session.truncate(np.array([length, 4]))
    assert session.positions.tolist() == [12, 4]
    expected = _streamed("rotary", None, 2, 5)
    np.testing.assert_allclose(session.decode(TOKENS[:2, [12, 4]].diagonal()), expected[[0, 1], [12, 4]], atol=1e-4)
    session.truncate(np.array([2, 0]))  # the sinks are all there
    found = session.prefill(np.stack([np.resize(TOKENS[0, 2:6], 4), TOKENS[1, :4]]))
    np.testing.assert_allclose(found, expected[[0, 1], [5, 3]], atol=1e-4)


@each_runtime
def test_a_token_that_does_not_exist_moves_nothing(runtime):
    """Although the tokens before it would have gone in already."""
    session = runtime.prepare(cached("rotary", window=5, sinks=2)).start(1, 100)
    session.prefill(TOKENS[:1, :6])
    bad = np.append(TOKENS[:1, 6:12], [[13]], axis=1)
    with pytest.raises(GraphError, match=r"token ids must be 0\.\.12"):
        session.prefill(bad)
    assert session.positions.tolist() == [6]
    np.testing.assert_allclose(session.prefill(bad[:, :-1])[0], _streamed("rotary", None, 2, 5)[0, 11], atol=1e-4)


def _half(_layer, _head, x):
    return x.astype(np.float16).astype(np.float64)


@each_runtime
@each_kind
def test_float16_is_rounding_what_is_kept(runtime, positions, kv_heads):
    graph = network(positions, kv_heads)
    expected = np.stack([decode(graph, row, HEADS, keep_key=_half, keep_value=_half) for row in TOKENS])
    found = stepwise(runtime.prepare(cached(positions, kv_heads, dtype="fp16")), TOKENS)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def key_scales(positions, kv_heads):
    """By hand: the keys of the calibration split, from the oracle, token by token."""
    graph, largest = network(positions, kv_heads), {}

    def look(layer, head, key):
        size = np.abs(key) if positions != "rotary" else np.repeat(np.hypot(key[0::2], key[1::2]), 2)
        largest[layer, head] = np.maximum(largest.get((layer, head), 0), size)
        return key

    for row in DATA.calibration.inputs:
        decode(graph, row, HEADS, keep_key=look, keep_value=lambda _layer, _head, value: value)
    return {place: peak / 127 for place, peak in largest.items()}


@pytest.mark.parametrize("at_once", [4096, 95, 1])
@each_kind
def test_the_scales_of_keys_are_those_of_the_calibration_split(positions, kv_heads, at_once, monkeypatch):
    """Rounded up to 8 bits, so less than 1 % larger; at once, in parts of 3, 3 and 2 rows, and row by row."""
    calls, observe = [], kv_cache.intermediate_values
    monkeypatch.setattr(kv_cache, "_TOKENS", at_once)
    monkeypatch.setattr(
        kv_cache, "intermediate_values", lambda g, names, rows, of: calls.append(len(rows)) or observe(g, names, rows, of=of)
    )
    graph = run_pass(KvCache(dtype="int8"), network(positions, kv_heads), DATA).graph
    assert calls == {4096: [8], 95: [3, 3, 2], 1: [1] * 8}[at_once]
    for (layer, head), scale in key_scales(positions, kv_heads).items():
        found = graph.weights[f"layer{layer + 1}.attention.key_scale"].values[head]
        assert (found >= scale * 0.9999).all() and (found <= scale * 1.0081).all()


@each_runtime
@each_kind
def test_int8_is_rounding_what_is_kept_to_its_grids(runtime, positions, kv_heads):
    graph = cached(positions, kv_heads, dtype="int8")
    scales = [graph.weights[f"layer{layer}.attention.key_scale"].values.astype(np.float64) for layer in (1, 2)]

    def key(layer, head, x):
        return np.clip(np.rint(x / scales[layer][head]), -127, 127) * scales[layer][head]

    def value(_layer, _head, x):
        scale = np.abs(x).max() / 127
        return np.rint(x / scale) * scale

    plain = network(positions, kv_heads)
    expected = np.stack([decode(plain, row, HEADS, keep_key=key, keep_value=value) for row in TOKENS])
    found = stepwise(runtime.prepare(graph), TOKENS)
    error = np.abs(found - expected)
    # float32 rounds a few codes the other way; the grids themselves cost more than ten times as much
    exact = _streamed(positions, kv_heads, 0, None)
    assert np.median(error) < 1e-4 and error.max() < 0.2 * np.abs(exact - expected).max()


@each_runtime
@each_kind
@pytest.mark.parametrize("window", [None, 9])
def test_an_int8_cache_is_the_same_at_once_and_in_steps(runtime, positions, kv_heads, window):
    executable = runtime.prepare(cached(positions, kv_heads, dtype="int8", window=window))
    stepped = stepwise(executable, TOKENS)
    assert difference(stepped, executable(TOKENS), quantized=True) == ""
    assert np.median(np.abs(stepped - executable(TOKENS))) < 1e-5


def test_the_bytes_of_each_kind():
    """2 layers, 4 heads of 8, 30 places, one row; values have a float32 scale for each head and place."""
    sizes = {d: NUMPY.prepare(cached("rotary", dtype=d)).start(1, 30).state_bytes - 8 for d in ("fp32", "fp16", "int8")}
    numbers = 2 * 2 * 4 * 30 * 8
    assert sizes == {"fp32": 4 * numbers, "fp16": 2 * numbers, "int8": numbers + 2 * 4 * 30 * 4}


def test_a_head_of_32_takes_27_percent_in_int8():
    graph = MinimalTransformer(13, 64, 1, 64, 2, 8, "rotary").build("net", np.random.default_rng(0))
    for runtime in (NUMPY, RUNTIMES["compiled"]):
        sizes = [
            runtime.prepare(run_pass(KvCache(dtype=d), graph, DATA).graph).start(1, 64).state_bytes for d in ("fp32", "int8")
        ]
        assert sizes[1] / sizes[0] == pytest.approx((32 + 32 + 4) / 256, abs=0.001)


def test_quantized_weights_and_a_quantized_cache_go_together():
    quantized = run_pass(Quant(), network("rotary", 2), DATA).graph
    expected = NUMPY.prepare(quantized)(TOKENS)
    graph = run_pass(KvCache(dtype="int8"), quantized, DATA).graph
    for runtime in RUNTIMES.values():
        assert difference(expected, stepwise(runtime.prepare(graph), TOKENS), quantized=True) == ""


@pytest.mark.parametrize(
    "settings", [{"dtype": "fp16"}, {"dtype": "int8"}, {"window": 5}, {"window": 5, "dtype": "int8"}], ids=str
)
def test_every_kind_is_a_legal_onnx_model(settings):
    """By onnx's own checker, with shapes inferred."""
    assert export(cached("rotary", 2, **settings))


def test_float32_without_a_window_has_not_changed():
    """Neither new arguments nor attributes: a file is what it was."""
    graph = cached("learned")
    assert [len(n.inputs) for n in graph.nodes if n.op == "cache_write"] == [4] * 4
    assert [(len(n.inputs), dict(n.attributes)) for n in graph.nodes if n.op == "cached_attention"] == [
        (4, {"heads": 4})
    ] * 2


def test_what_is_exact_is_said_for_the_network_at_hand():
    graph = network("rotary")
    exact = [{}, {"window": 36}, {"window": 40, "sinks": 0}, {"window": 100}]
    lossy = [
        {"dtype": "fp16"},
        {"dtype": "int8"},
        {"window": 35},
        {"window": 39, "sinks": 0},
        {"window": 40, "dtype": "int8"},
    ]
    assert [KvCache(**s).is_exact(graph) for s in exact] == [True] * len(exact)
    assert [KvCache(**s).is_exact(graph) for s in lossy] == [False] * len(lossy)
    expected = NUMPY.prepare(graph)(TOKENS)
    for settings in exact[1:]:
        np.testing.assert_allclose(stepwise(NUMPY.prepare(cached("rotary", **settings)), TOKENS), expected, atol=1e-4)


def test_rounded_caches_are_held_to_a_few_steps():
    graphs = [cached("rotary", dtype=dtype) for dtype in ("fp32", "fp16", "int8")]
    assert [is_quantized(g) for g in graphs] == [may_flip(g) for g in graphs] == [False, True, True]


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"window": 0}, "window=0: expected a whole number >= 1, or null"),
        ({"sinks": -1}, "sinks=-1: expected a whole number"),
        ({"sinks": 2}, "sinks=2: expected 4, or a window with them"),
    ],
)
def test_settings_out_of_range_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        KvCache(**settings)


def test_the_calibration_split_decides_and_nothing_else_is_looked_at():
    other = calibration_data(np.zeros((4, 30), np.int64))
    one, same, another = (run_pass(KvCache(dtype="int8"), network("rotary"), d).graph for d in (DATA, DATA, other))
    assert graph_hash(one) == graph_hash(same) != graph_hash(another)


def test_the_state_is_explicit():
    graph = cached("rotary", 2, dtype="int8", window=5, sinks=2)
    specs = {state.name: state.spec for state in graph.state}
    for layer in (1, 2):
        at = f"layer{layer}.attention"
        assert specs[f"{at}.keys"] == specs[f"{at}.values"] == Spec(("N", 2, "L", 8), "int8")
        assert specs[f"{at}.value_scales"] == Spec(("N", 2, "L", 1), "float32")
        assert dict(graph.node(at).attributes) == {"heads": 4, "sinks": 2, "window": 5}
        assert graph.node(f"layer{layer}.query.rotary.sinks").attributes["reach"] == 6
    assert (graph.window, graph.limit, graph.context) == ((2, 5), None, CONTEXT)
    assert cached("learned", window=5).limit == CONTEXT


# sabotage: each break is one that a reader of the code could make


def broken(monkeypatch, op, change):
    """Put a changed forward in the place of an op's."""
    original = OPS[op].forward
    monkeypatch.setitem(OPS, op, replace(OPS[op], forward=lambda *arrays, **settings: change(original, *arrays, **settings)))


def _worst(**settings):
    window = (settings["sinks"], settings["window"]) if "window" in settings else (0, None)
    expected = _streamed("rotary", 2, *window)
    return np.abs(stepwise(NUMPY.prepare(cached("rotary", 2, **settings)), TOKENS) - expected).max()


def test_a_cache_that_drops_a_token_is_caught(monkeypatch):
    assert _worst() < 1e-4

    def drops(original, cache_, new, position, lengths, *rest, **settings):
        return original(cache_, new, position, np.where(position == 7, 0, lengths), *rest, **settings)

    broken(monkeypatch, "cache_write", drops)
    assert _worst() > 1e-2


def test_evicting_a_sink_is_caught(monkeypatch):
    """A ring that comes round to the very first place."""
    settings = {"sinks": 3, "window": 8}
    assert _worst(**settings) < 1e-4
    broken(
        monkeypatch, "cache_write", lambda original, *arrays, sinks=0, window=0: original(*arrays, sinks=0, window=window)
    )
    assert _worst(**settings) > 1e-2


def test_a_ring_that_is_one_place_too_short_is_caught(monkeypatch):
    settings = {"sinks": 3, "window": 8}
    whole = session_module.places
    monkeypatch.setattr(session_module, "places", lambda graph, length: whole(graph, length) - 1)
    assert _worst(**settings) > 1e-2


@pytest.mark.parametrize("lag", [-1, 1])
def test_a_position_off_by_one_is_caught(monkeypatch, lag):
    """Queries alone: keys keep their places."""
    settings = {"sinks": 3, "window": 8}

    def moved(original, x, offset=None, **given):
        late = offset is not None and x.shape[-1] == 32
        return original(x, np.maximum(offset + lag, 0) if late else offset, **given)

    broken(monkeypatch, "rotary", moved)
    assert _worst(**settings) > 1e-2


def test_sinks_at_the_distance_of_the_text_are_caught(monkeypatch):
    """Without the second turn of the query: what StreamingLLM says not to do."""
    settings = {"sinks": 3, "window": 8}
    broken(monkeypatch, "rotary", lambda original, *arrays, reach=0, **given: original(*arrays, **given))
    assert _worst(**settings) > 1e-2


@pytest.mark.parametrize(
    "op, which", [("cache_write", 4), ("cached_attention", 4), ("cached_attention", 5), ("head_scale", 0)]
)
def test_a_wrong_scale_is_caught(monkeypatch, op, which):
    before = _worst(dtype="int8")

    def off(original, *arrays, **given):
        changed = [array * np.float32(1.5) if i == which and array is not None else array for i, array in enumerate(arrays)]
        if op == "head_scale":
            return original(*arrays, **given)[..., ::-1].copy()
        return original(*changed, **given)

    broken(monkeypatch, op, off)
    assert _worst(dtype="int8") > 5 * before


def test_a_cpu_that_cannot_round_to_float16_is_told(monkeypatch):
    monkeypatch.setattr(attention_ops, "features", frozenset)
    with pytest.raises(GraphError, match=r"no instruction that rounds to float16; use runtime=numpy$"):
        RUNTIMES["compiled"].prepare(cached("rotary", dtype="fp16"))
