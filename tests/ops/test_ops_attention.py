"""Attention against loops, the cached form against the whole one, embeddings and positions."""

import math

import numpy as np
import op_oracles as oracle
import pytest

from mlperf_opt.errors import GraphError
from mlperf_opt.ops import OPS
from mlperf_opt.ops.embedding import sinusoid_table


def _qkv(rng, *shape):
    return [rng.normal(size=shape).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("n, t, d, heads", [(2, 5, 6, 2), (1, 1, 4, 4), (3, 4, 3, 1), (1, 9, 8, 4)])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_the_loop(rng, n, t, d, heads, causal):
    q, k, v = _qkv(rng, n, t, d)
    found = OPS["attention"].forward(q, k, v, heads=heads, causal=causal)
    np.testing.assert_allclose(found, oracle.attention(q, k, v, heads, causal), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads, groups", [(4, 2), (6, 1), (6, 3)])
@pytest.mark.parametrize("time", [5, 67])
def test_queries_share_the_heads_of_the_keys(rng, heads, groups, time):
    """67 places are more than one block of queries."""
    q = rng.normal(size=(2, time, 2 * heads)).astype(np.float32)
    k, v = (rng.normal(size=(2, time, 2 * groups)).astype(np.float32) for _ in range(2))
    found = OPS["attention"].forward(q, k, v, heads=heads, causal=True)
    np.testing.assert_allclose(found, oracle.attention(q, k, v, heads, True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("time", [63, 64, 65, 200])
def test_long_sequences_are_the_formula(rng, time):
    """Whatever blocks the work is cut into; in float64, with a mask and no loop."""
    q, k, v = (rng.normal(size=(2, time, 6)) for _ in range(3))
    scores = np.einsum("nthd,nshd->nhts", q.reshape(2, time, 2, 3), k.reshape(2, time, 2, 3)) / math.sqrt(3)
    shares = np.exp(scores) * np.tri(time)
    expected = np.einsum("nhts,nshd->nthd", shares / shares.sum(axis=-1, keepdims=True), v.reshape(2, time, 2, 3))
    found = OPS["attention"].forward(*(x.astype(np.float32) for x in (q, k, v)), heads=2, causal=True)
    np.testing.assert_allclose(found, expected.reshape(2, time, 6), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [None, (0, 5, 2)])
@pytest.mark.parametrize("width, wide", [(2, 2), (4, 8), (6, 18), (16, 32)])
def test_rotary_turns_pairs_by_their_place(rng, offset, width, wide):
    x = rng.normal(size=(3, 4, wide)).astype(np.float32)
    places = np.arange(4) + np.zeros((3, 1), int) + (0 if offset is None else np.array(offset)[:, None])
    found = OPS["rotary"].forward(x, None if offset is None else np.array(offset), width=width, context=9)
    np.testing.assert_allclose(found, oracle.rotary(x, places, width), rtol=1e-4, atol=1e-5)


def test_products_of_turned_vectors_depend_on_their_distance_alone(rng):
    q, k = (np.repeat(rng.normal(size=(1, 1, 8)), 30, axis=1).astype(np.float32) for _ in range(2))
    q, k = (OPS["rotary"].forward(x, None, width=8, context=30)[0] for x in (q, k))
    products = q @ k.T
    assert np.abs(np.diff(products[0])).min() > 1e-4, "and on the distance they do depend"
    np.testing.assert_allclose(products[1:, 1:], products[:-1, :-1], rtol=1e-3, atol=1e-4)


def test_attention_depends_on_content():
    """A key that matches the query takes nearly all of the weight (a mask added in the wrong form makes it uniform)."""
    q = k = np.eye(4, dtype=np.float32)[None] * 30
    v = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    np.testing.assert_allclose(OPS["attention"].forward(q, k, v, heads=1, causal=True), v, rtol=1e-4, atol=1e-4)


def test_causal_attention_never_sees_the_future(rng):
    q, k, v = _qkv(rng, 2, 6, 4)
    before = OPS["attention"].forward(q, k, v, heads=2, causal=True)
    k[:, 4:], v[:, 4:] = 1e4, -1e4
    after = OPS["attention"].forward(q, k, v, heads=2, causal=True)
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert np.abs(after[:, 4:] - before[:, 4:]).max() > 1


def _step(state, q, k, v, lengths, heads):
    keys, values, position = state
    keys = OPS["cache_write"].forward(keys, k, position, lengths)
    values = OPS["cache_write"].forward(values, v, position, lengths)
    out = OPS["cached_attention"].forward(q, keys, values, position, heads=heads)
    return out, (keys, values, OPS["advance"].forward(position, lengths))


def _empty(n, heads, capacity, d):
    return (*(np.zeros((n, heads, capacity, d), np.float32) for _ in range(2)), np.zeros(n, np.int64))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("capacity", [7, 12])
@pytest.mark.parametrize("prompts", [(1, 1, 1), (3, 1, 4), (5, 5, 5)])
def test_cached_steps_equal_whole_attention_per_row(rng, heads, capacity, prompts):
    """A prefill with a different length per row, then one token at a time: every row is the whole causal attention."""
    total, width = 7, 6
    q, k, v = _qkv(rng, 3, total, width)
    expected = oracle.attention(q, k, v, heads, causal=True)
    lengths = np.array(prompts)
    longest = max(prompts)
    out, state = _step(
        _empty(3, heads, capacity, width // heads), q[:, :longest], k[:, :longest], v[:, :longest], lengths, heads
    )
    for row, length in enumerate(prompts):
        np.testing.assert_allclose(out[row, :length], expected[row, :length], rtol=1e-4, atol=1e-5)
    rows, ones = np.arange(3), np.ones(3, np.int64)
    for _ in range(total - longest):
        place = state[2]
        out, state = _step(state, *(x[rows, place][:, None] for x in (q, k, v)), ones, heads)
        np.testing.assert_allclose(out[:, 0], expected[rows, place], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state[2], lengths + total - longest)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("sharpness", [1, 40])
def test_a_token_alone_sees_the_sinks_and_the_window_of_a_longer_cache(rng, window, sharpness):
    q = sharpness * rng.normal(size=(1, 1, 4)).astype(np.float32)
    keys, values = (rng.normal(size=(1, 1, 20, 4)).astype(np.float32) for _ in range(2))
    found = OPS["cached_attention"].forward(q, keys, values, np.array([15]), heads=1, sinks=2, window=window)
    seen = [0, 1, *range(16 - window, 16)]
    expected = oracle.attention_row(q[0, 0], keys[0, 0, seen], values[0, 0, seen], 1)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, largest, near", [(np.float32, 100, 1e-4), (np.float32, 3e4, 0.03), (np.float16, 14, 0.03)])
@pytest.mark.parametrize("of_heads", [(1, 1), (-1, -1), (1, -1), (0.1, -1)])
def test_a_token_alone_has_scores_of_any_size(rng, dtype, largest, near, of_heads):
    """Of all heads large, or small, or of one each: exp alone would be no number, or lose what is small."""
    q = np.ones((1, 1, 4), dtype)
    sizes = np.repeat(of_heads, 2) * largest / math.sqrt(2)  # a score is the sum of a head's two, over their root
    keys = (rng.uniform(0.98, 1, (1, 6, 4)) * sizes).astype(dtype)
    values = rng.normal(size=(1, 6, 4)).astype(dtype)
    cached = [x.reshape(1, 6, 2, 2).swapaxes(1, 2).copy() for x in (keys, values)]
    found = OPS["cached_attention"].forward(q, *cached, np.array([5]), heads=2)
    expected = oracle.attention_row(q[0, 0], keys[0], values[0], 2)
    assert found.dtype == dtype
    np.testing.assert_allclose(found[0, 0], expected, atol=near)


@pytest.mark.parametrize("score, size", [(86, 1), (50, 1e18), (29, 1e18), (-59, 1e-10), (-85, 1e-8)])
def test_large_values_of_many_places_and_small_ones_keep_their_digits(rng, score, size):
    keys = np.full((1, 1, 900, 1), score, np.float32)
    values = (size * rng.uniform(1, 2, (1, 1, 900, 1))).astype(np.float32)
    found = OPS["cached_attention"].forward(np.ones((1, 1, 1), np.float32), keys, values, np.array([899]), heads=1)
    np.testing.assert_allclose(found.item(), values.mean(dtype=np.float64), rtol=1e-5)


def test_a_chunk_behind_a_filled_cache_equals_whole_attention(rng):
    q, k, v = _qkv(rng, 2, 6, 4)
    expected = oracle.attention(q, k, v, 2, causal=True)
    _, state = _step(_empty(2, 2, 6, 2), q[:, :2], k[:, :2], v[:, :2], np.array([2, 2]), 2)
    out, _ = _step(state, q[:, 2:], k[:, 2:], v[:, 2:], np.array([4, 4]), 2)
    np.testing.assert_allclose(out, expected[:, 2:], rtol=1e-4, atol=1e-5)


def test_cache_write_stores_the_first_token_and_touches_no_other_place(rng):
    cache = rng.normal(size=(2, 2, 5, 3)).astype(np.float32)
    before, new = cache.copy(), rng.normal(size=(2, 3, 6)).astype(np.float32)
    out = OPS["cache_write"].forward(cache, new, np.array([0, 2]), np.array([3, 1]))
    expected = before.copy()
    for row, start, count in ((0, 0, 3), (1, 2, 1)):
        for t in range(count):
            expected[row, :, start + t] = new[row, t].reshape(2, 3)
    np.testing.assert_array_equal(out, expected)
    assert out is cache, "the buffer of the state is reused"


def test_a_row_of_length_zero_keeps_its_cache(rng):
    cache = rng.normal(size=(2, 1, 3, 2)).astype(np.float32)
    before = cache.copy()
    OPS["cache_write"].forward(cache, np.ones((2, 1, 2), np.float32), np.array([1, 1]), np.array([0, 1]))
    np.testing.assert_array_equal(cache[0], before[0])
    np.testing.assert_array_equal(cache[1, 0], [before[1, 0, 0], [1, 1], before[1, 0, 2]])


def test_what_lies_behind_a_row_is_never_read(rng):
    q = rng.normal(size=(2, 1, 4)).astype(np.float32)
    keys, values = (rng.normal(size=(2, 2, 6, 2)).astype(np.float32) for _ in range(2))
    position = np.array([1, 3])
    clean = OPS["cached_attention"].forward(q, keys, values, position, heads=2)
    for row, place in enumerate(position):
        keys[row, :, place + 1 :], values[row, :, place + 1 :] = 1e4, 7.0
    np.testing.assert_array_equal(OPS["cached_attention"].forward(q, keys, values, position, heads=2), clean)


@pytest.mark.parametrize("places, width", [(1, 1), (7, 4), (5, 5), (40, 3), (300, 8)])
def test_sinusoid_table_is_the_formula(places, width):
    expected = np.zeros((places, width))
    for place, column in np.ndindex(places, width):
        angle = place / 10000 ** (2 * (column // 2) / width)
        expected[place, column] = math.cos(angle) if column % 2 else math.sin(angle)
    np.testing.assert_allclose(sinusoid_table(places, width), expected, atol=1e-6)


@pytest.mark.parametrize("op", ["learned_positions", "sinusoidal_positions"])
def test_an_offset_shifts_each_row(rng, op):
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    table = sinusoid_table(9, 4) if op.startswith("sin") else rng.normal(size=(9, 4)).astype(np.float32)
    middle, attributes = ((), {"context": 9}) if op.startswith("sin") else ((table,), {})
    forward = OPS[op].forward
    expected = [[x[n, t] + table[start + t] for t in range(3)] for n, start in enumerate((5, 0))]
    np.testing.assert_array_equal(forward(x, *middle, np.array([5, 0]), **attributes), expected)
    whole = [[x[n, t] + table[t] for t in range(3)] for n in range(2)]
    np.testing.assert_array_equal(forward(x, *middle, None, **attributes), whole)


def test_more_tokens_than_places_are_refused():
    with pytest.raises(GraphError, match="4 tokens, but the model knows 3 places"):
        OPS["sinusoidal_positions"].forward(np.zeros((1, 4, 2), np.float32), None, context=3)


@pytest.mark.parametrize("tokens", [[[0, 4]], [[-1, 0]]])
@pytest.mark.parametrize("op", ["embedding", "qembedding"])
def test_token_ids_outside_the_table_are_refused(op, tokens):
    arguments = (np.zeros((4, 2), np.float32),) if op == "embedding" else (np.zeros((4, 2), np.int8), np.ones(4, np.float32))
    with pytest.raises(GraphError, match=r"token ids must be 0\.\.3"):
        OPS[op].forward(np.array(tokens), *arguments)


def test_embedding_looks_up_rows_and_adds_up_their_gradients():
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    tokens = np.array([[2, 0, 2]])
    np.testing.assert_array_equal(OPS["embedding"].forward(tokens, table), [[[4, 5], [0, 1], [4, 5]]])
    gradient = OPS["embedding"].vjp(np.ones((1, 3, 2), np.float32), table[tokens], tokens, table)[1]
    np.testing.assert_array_equal(gradient, [[1, 1], [0, 0], [2, 2]])


def _in_order(grad, rows, count):
    """The sum of each row's vectors in float32, added one by one in the order in which they come."""
    total = np.zeros((count, grad.shape[-1]), np.float32)
    for row, vector in zip(rows.reshape(-1), grad.reshape(-1, grad.shape[-1]), strict=True):
        total[row] += vector
    return total


@pytest.mark.parametrize("vocabulary", [3, 40])
def test_gradients_of_a_table_are_summed_in_order(rng, vocabulary):
    """Training's bits depend on the order: a product, or a sum by pairs, is another one."""
    grad, table = rng.normal(size=(4, 100, 8)).astype(np.float32), np.zeros((vocabulary, 8), np.float32)
    tokens = rng.integers(0, vocabulary, (4, 100))
    found = OPS["embedding"].vjp(grad, grad, tokens.astype(np.uint8), table)[1]  # places are more than 8 bits can count
    assert found.dtype == np.float32 and found.tobytes() == _in_order(grad, tokens, vocabulary).tobytes()
    offset = rng.integers(0, 30, 4)
    places = np.minimum(offset[:, None] + np.arange(100), vocabulary - 1)
    found = OPS["learned_positions"].vjp(grad, grad, grad, table, offset)[1]
    assert found.tobytes() == _in_order(grad, places, vocabulary).tobytes()
