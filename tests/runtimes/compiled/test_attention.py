"""Attention and caches at sizes that are no whole vectors, against numpy; sessions at every kind of position."""

from contextlib import contextmanager, suppress

import numpy as np
import pytest
from compiled_cases import check_against_numpy, check_nodes, check_same, model, runtime
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlperf_opt.data import Dataset, Split
from mlperf_opt.errors import GraphError, SessionError
from mlperf_opt.graph import GraphBuilder, Weight
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.passes import PassContext
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.runtimes import NUMPY, difference, is_quantized
from mlperf_opt.runtimes.compiled import attention_ops
from mlperf_opt.runtimes.compiled.executable import CompiledExecutable
from mlperf_opt.runtimes.compiled.layout import LINE, Arena
from mlperf_opt.runtimes.compiled.worker import Worker

SEEDS = st.integers(0, 99)


def _network(seed, cached, heads, width, context, kind=None, **sizes):
    """A small decoder with weights so large that attention is far from uniform."""
    family = MinimalTransformer(**{"heads": heads, "dim": heads * width, "context": context, "layers": 1, **sizes})
    graph = family.build("net", np.random.default_rng(seed))
    rng = np.random.default_rng(seed + 1)
    grown = {
        name: Weight(w.values + rng.normal(size=w.values.shape).astype(np.float32) * np.float32(0.3))
        for name, w in graph.weights.items()
    }
    graph = graph.with_weights(grown)
    split = Split(np.arange(12).reshape(2, 6), np.zeros((2, 6), np.int64))
    context_ = PassContext(Dataset("none", "completion", split, split, split), 0, NUMPY)
    return KvCache(**(kind or {}))(graph, context_).graph if cached else graph


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.booleans(), SEEDS)
def test_attention_over_whole_sequences(heads, width, time, rows, causal, seed):
    rng = np.random.default_rng(seed)
    build = GraphBuilder("a")
    table = np.concatenate([np.eye(heads * width), rng.normal(size=(40, heads * width))]).astype(np.float32)
    x = build.node("embedding", "e", build.input("t", ("N", "T"), "int64"), table=table)
    spread = np.float32(1 / np.sqrt(heads * width))  # scores of a few units: exp magnifies the rounding of large ones
    q, k, v = (
        build.node("linear", n, x, weight=spread * rng.normal(size=(heads * width,) * 2).astype(np.float32))
        for n in ("q", "k", "v")
    )
    graph = build.finish(build.node("attention", "y", q, k, v, heads=heads, causal=causal))
    tokens = rng.integers(0, len(table), (rows, time))
    check_nodes(graph, tokens)


KINDS = [{}, {"dtype": "fp16"}, {"dtype": "int8"}, {"window": 5, "sinks": 2}, {"window": 4, "sinks": 17, "dtype": "int8"}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("heads, kv_heads, width", [(2, 2, 16), (4, 2, 10), (3, 1, 34)])
def test_every_node_of_a_cached_graph(kind, positions, heads, kv_heads, width):
    """On a whole sequence at once, with widths that are no whole vectors; codes and halves to the last bit."""
    graph = _network(3, True, heads, width, 70, positions=positions, kv_heads=kv_heads, kind=kind)
    check_nodes(graph, np.random.default_rng(1).integers(0, 27, (3, 67)))


@pytest.mark.parametrize("kind", KINDS[3:], ids=str)
def test_a_window_over_a_call_beyond_the_context(kind):
    graph = _network(4, True, 4, 10, 16, positions="rotary", kv_heads=2, kind=kind)
    tokens = np.random.default_rng(2).integers(0, 27, (2, 150))
    expected, actual = NUMPY.prepare(graph)(tokens), runtime().prepare(graph)(tokens)
    assert difference(expected, actual, is_quantized(graph)) == ""


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20).map(lambda n: 2 * n), st.integers(1, 5), st.integers(2, 40), st.data(), SEEDS)
def test_sessions_are_those_of_numpy(heads, width, rows, capacity, data, seed):
    """Prompts of unequal length, steps, cuts and longer steps, in any order, two sessions of one executable in turn."""
    assume(heads * width > 2)  # a norm over two numbers is a step: near it rounding comes out 300 times as large
    rng = np.random.default_rng(seed)
    graph = _network(seed % 5, True, heads, width, 40)
    floor = 1e-5 if heads * width >= 16 else 2e-4  # a norm over a few numbers can magnify their rounding
    chosen = runtime().prepare(graph)
    pairs = [(NUMPY.prepare(graph).start(rows, capacity), chosen.start(rows, capacity)) for _ in range(2)]
    for _ in range(data.draw(st.integers(1, 8))):
        expected, actual = pairs[data.draw(st.integers(0, 1))]
        room = capacity - int(expected.positions.max())
        act = data.draw(st.sampled_from(["prefill", "decode", "truncate"]))
        if act == "truncate":
            cut = rng.integers(0, expected.positions + 1)
            expected.truncate(cut)
            actual.truncate(cut)
        elif room and act == "decode":
            tokens = rng.integers(0, 27, rows)
            check_same(actual.decode(tokens), expected.decode(tokens), exact=False, floor=floor)
        elif room:
            lengths = rng.integers(1, capacity - expected.positions, endpoint=True)
            tokens = rng.integers(0, 27, (rows, int(lengths.max()) + data.draw(st.integers(0, 3))))
            check_same(actual.prefill(tokens, lengths), expected.prefill(tokens, lengths), exact=False, floor=floor)
        np.testing.assert_array_equal(actual.positions, expected.positions)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS[1:]), st.integers(1, 4), st.integers(2, 90), st.data(), SEEDS)
def test_sessions_of_every_kind_are_those_of_numpy(kind, rows, length, data, seed):
    """Any order of prompts, steps and cuts; what a window can't go back to is refused by both, and changes nothing."""
    rng = np.random.default_rng(seed)
    graph = _network(seed % 3, True, 4, 12, 100, positions="rotary", kv_heads=2, kind=kind)
    expected, actual = (chosen.prepare(graph).start(rows, length) for chosen in (NUMPY, runtime()))
    for _ in range(data.draw(st.integers(1, 8))):
        room = length - int(expected.positions.max())
        act = data.draw(st.sampled_from(["prefill", "prefill", "decode", "truncate"]))
        if act == "truncate":
            cut = rng.integers(0, expected.positions + 1)
            refusals = [_refusal(session, cut) for session in (expected, actual)]
            assert refusals[0] == refusals[1]
        elif room:
            lengths = rng.integers(1, room, rows, endpoint=True) if act == "prefill" else np.ones(rows, np.int64)
            tokens = rng.integers(0, 27, (rows, int(lengths.max())))
            found = [session.prefill(tokens, lengths) for session in (expected, actual)]
            assert difference(*found, is_quantized(graph)) == ""
        np.testing.assert_array_equal(actual.positions, expected.positions)


def _refusal(session, cut):
    try:
        session.truncate(cut)
    except SessionError as error:
        return str(error)
    return ""


def test_a_prompt_padded_beyond_the_cache():
    """Only the lengths count: what pads a batch may be longer than the whole cache, and than a chunk of the program."""
    graph = _network(0, True, 2, 8, 24)
    rng = np.random.default_rng(0)
    tokens, lengths = rng.integers(0, 27, (3, 700)), np.array([2, 5, 1])
    expected, actual = (chosen.prepare(graph).start(3, 9) for chosen in (NUMPY, runtime()))
    check_same(actual.prefill(tokens, lengths), expected.prefill(tokens, lengths), exact=False, floor=1e-5)
    for _ in range(4):
        token = rng.integers(0, 27, 3)
        check_same(actual.decode(token), expected.decode(token), exact=False, floor=1e-5)


def test_a_batch_beyond_the_chunk_of_the_program():
    graph = _network(1, True, 2, 8, 12)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 27, (300, 12))
    check_against_numpy(_network(1, False, 2, 8, 12), tokens, exact=False)
    expected, actual = (chosen.prepare(graph).start(300, 12) for chosen in (NUMPY, runtime()))
    check_same(actual.prefill(tokens[:, :7]), expected.prefill(tokens[:, :7]), exact=False, floor=1e-5)
    check_same(actual.decode(tokens[:, 7]), expected.decode(tokens[:, 7]), exact=False, floor=1e-5)


@pytest.mark.parametrize("before", ["none", "static", "dynamic", "weight_only", "fp16"])
def test_a_decode_step_is_the_prefill_of_one_more(before):
    """Within the runtime: the same tokens, all at once or one by one, give the same logits."""
    graph, inputs = model("transformer", before, True)
    executable = runtime().prepare(graph)
    stepped, at_once = executable.start(4, 16), executable.start(4, 16)
    for place in range(10):
        found = stepped.decode(inputs[:4, place])
    limit = 1e-5 if before in ("none", "weight_only", "fp16", "dynamic") else 0.05
    expected = at_once.prefill(inputs[:4, :10])
    np.testing.assert_allclose(found, expected, atol=limit * float(np.abs(expected).max()))


@pytest.mark.parametrize("kind", [{}, {"dtype": "int8"}, {"window": 9, "sinks": 2}], ids=str)
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_each_chunk_of_a_batch_has_its_own_rows_and_positions(positions, kind):
    """Three rows of 30 tokens are two chunks: each begins where its rows stand, and writes into its part of the state."""
    graph = _network(5, True, 2, 16, 80, positions=positions, kind=kind)
    tokens = np.random.default_rng(6).integers(0, 27, (2, 3, 30))
    expected, actual = (chosen.prepare(graph).start(3, 80) for chosen in (NUMPY, runtime()))
    for part, lengths in zip(tokens, np.array([[4, 30, 17], [30, 9, 22]]), strict=True):
        found = [session.prefill(part, lengths) for session in (actual, expected)]
        for row, length in enumerate(lengths):
            check_same(*(logits[row, :length] for logits in found), exact=False, floor=1e-4 if "dtype" in kind else 1e-5)
    check_same(*(session.decode(tokens[0, :, 0]) for session in (actual, expected)), exact=False, floor=1e-4)


@pytest.mark.parametrize("layers", [1, 28, 60])
def test_a_state_has_room_for_any_number_of_layers(layers):
    graph = _network(1, True, 1, 16, 8, layers=layers)
    tokens = np.random.default_rng(2).integers(0, 27, (2, 6))
    expected, actual = (chosen.prepare(graph).start(2, 8).prefill(tokens) for chosen in (NUMPY, runtime()))
    check_same(actual, expected, exact=False, floor=1e-4)


def test_lengths_may_lie_anywhere():
    """A part of another array, and the same array with other numbers the next time."""
    graph = _network(7, True, 2, 8, 40)
    tokens = np.random.default_rng(8).integers(0, 27, (3, 3, 6))
    expected, actual = (chosen.prepare(graph).start(3, 40) for chosen in (NUMPY, runtime()))
    table, reused = np.array([[2, 1, 1], [5, 6, 1], [4, 3, 1]]), np.empty(3, np.int64)
    for part, column, other in zip(tokens, range(3), ([4, 2, 6], [1, 3, 2], [2, 2, 2]), strict=True):
        for session in (expected, actual):
            session.prefill(part, table[:, column])
        reused[:] = other
        found = [session.prefill(part, reused) for session in (actual, expected)]
        check_same(*found, exact=False, floor=1e-5)
        np.testing.assert_array_equal(actual.positions, expected.positions)


_GUARD, _BYTE = 8192, 0xA5


@contextmanager
def _guards():
    """Put bytes behind the scratch of every instruction and around every state, and look whether they are the same after."""
    workers, states = [], []
    start, fresh = Worker.__init__, CompiledExecutable._state

    def scratch(arena, size):
        offset = arena._new(-(-size // LINE) * LINE + _GUARD)
        arena.fills.append((offset + size, _GUARD, _BYTE))
        return offset

    def started(worker, program, *rest):
        start(worker, program, *rest)
        workers.append((worker, [fill for fill in program.arena.fills if fill[1:] == (_GUARD, _BYTE)]))

    def guarded(executable, batch, length):
        found = {}
        for name, array in fresh(executable, batch, length).items():
            raw = np.full(array.nbytes + 2 * _GUARD, _BYTE, np.uint8)
            found[name] = raw[_GUARD:-_GUARD].view(array.dtype).reshape(array.shape)
            found[name][:] = 0
            states.append(raw)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arena, "scratch", scratch)
        patch.setattr(Worker, "__init__", started)
        patch.setattr(CompiledExecutable, "_state", guarded)
        yield
    assert workers and states
    for worker, fills in workers:
        assert fills and all((worker.arena[start : start + size] == byte).all() for start, size, byte in fills)
    for raw in states:
        assert (raw[:_GUARD] == _BYTE).all() and (raw[-_GUARD:] == _BYTE).all()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([{}, *KINDS[1:], {"window": 3, "sinks": 0}]), st.integers(1, 2), st.integers(1, 40), st.integers(1, 3),
    st.integers(2, 90), SEEDS,
)  # fmt: skip
def test_nothing_is_written_beside_scratch_and_caches(kind, kv_heads, half_width, rows, length, seed):
    """Prompts, also of rows whose padding reaches beyond the cache, steps and cuts at any place."""
    rng = np.random.default_rng(seed)
    positions = "rotary" if "window" in kind else "learned"
    heads, context = 2 * kv_heads, max(16, length)  # no more room than the cache needs
    graph = _network(seed % 3, True, heads, 2 * half_width, context, positions=positions, kv_heads=kv_heads, kind=kind)
    with _guards():
        session = runtime().prepare(graph).start(rows, length)
        for _ in range(4):
            free = length - session.positions
            if free.min() > 0:
                lengths = rng.integers(1, free, endpoint=True)
                session.prefill(rng.integers(0, 27, (rows, int(lengths.max()))), lengths)
            if session.positions.max() < length:
                session.decode(rng.integers(0, 27, rows))
            with suppress(SessionError):  # what a window has lost
                session.truncate(rng.integers(0, session.positions, endpoint=True))


def test_what_a_session_held_before_is_forgotten_though_it_was_no_number():
    graph = _network(3, True, 2, 16, 40)
    table = next(node.argument("table") for node in graph.nodes if node.op == "embedding")
    values = graph.weights[table].values.copy()
    values[26] = 3e38
    executable = runtime().prepare(graph.with_weights({table: Weight(values)}))
    used, fresh = executable.start(2, 40), executable.start(2, 40)
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(used.prefill(np.full((2, 30), 26))).any()
    used.truncate(0)
    tokens, lengths = np.arange(24).reshape(2, 12), np.array([7, 12])
    found = used.prefill(tokens, lengths)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, fresh.prefill(tokens, lengths))


def test_a_refused_step_leaves_a_full_ring_as_it_was():
    """Of rows in several chunks; the first would have written over what the ring holds."""
    graph = _network(4, True, 4, 10, 16, positions="rotary", kv_heads=2, kind={"window": 12, "sinks": 4})
    sessions = [chosen.prepare(graph).start(300, 100) for chosen in (NUMPY, runtime())]
    tokens = np.random.default_rng(5).integers(0, 27, (300, 17))
    wrong = np.append(tokens[:-1, 16], 27)
    for session in sessions:
        session.prefill(tokens[:, :16])
        with pytest.raises(GraphError, match="token ids"):
            session.decode(wrong)
        session.truncate(10)
    check_same(sessions[1].decode(tokens[:, 16]), sessions[0].decode(tokens[:, 16]), exact=False, floor=1e-5)


def test_a_cache_of_keys_has_no_scale_for_each_vector(monkeypatch):
    graph = _network(3, True, 2, 16, 40, kind={"dtype": "int8"})
    monkeypatch.setattr(attention_ops, "in_panels", lambda *_: True)
    with pytest.raises(GraphError, match="keys with a scale for each vector"):
        runtime().prepare(graph)
