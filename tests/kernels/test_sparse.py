"""Sparse products against oracles written here: float64 for float32, int64 for codes, which must be equal bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlperf_opt.graph import Affine, GraphBuilder, Weight
from mlperf_opt.runtimes import COMPILED, NUMPY, RuntimeOptions
from mlperf_opt.runtimes.compiled.sparse_packing import count_few, count_many, pack_few, pack_many, words_of

LANES = 16
each_isa = pytest.mark.parametrize("isa", ["auto", "vnni", "portable"])
quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def layers(draw):
    """(columns, inputs, share of zeros, rows, seed)."""
    side = st.one_of(st.integers(1, 40), st.sampled_from([64, 65, 127, 130]))
    share = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
    return draw(side), draw(side), draw(share), draw(st.integers(1, 70)), draw(st.integers(0, 2**32 - 1))


def _mask(rng, columns, inputs, zeros):
    """True where a weight is 0; some columns and inputs have no weight at all."""
    mask = rng.random((columns, inputs)) < zeros
    if zeros:
        mask[rng.random(columns) < 0.1], mask[:, rng.random(inputs) < 0.1] = True, True
    return mask


def _run(graph, x, sparse="always", isa="auto"):
    return COMPILED.configured(RuntimeOptions(isa=isa, sparse=sparse)).prepare(graph)(x)


def _linear(weight, bias):
    build = GraphBuilder("linear")
    x = build.input("x", ("N", weight.shape[1]), "float32")
    return build.finish(build.node("linear", "y", x, weight=weight, **({} if bias is None else {"bias": bias})))


def _check_floats(graph, weight, bias, x):
    """Within 1e-5 of the sum of the magnitudes: no order of summation can be asked for more."""
    wide = weight.astype(np.float64)
    offset = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    expected = x.astype(np.float64) @ wide.T + offset
    magnitude = np.abs(x).astype(np.float64) @ np.abs(wide).T + np.abs(offset)
    got = _run(graph, x)
    assert got.dtype == np.float32 and got.shape == expected.shape
    assert (np.abs(got - expected) <= 1e-5 * magnitude).all()


def _scalar(value, dtype):
    return np.asarray(value, dtype)


SCALE_X, ZERO_X, SCALE_W = np.float32(0.03), 7, np.float32(0.002)
SCALE_Y, ZERO_Y = np.float32(0.7), 11


def _codes_graph(weight, bias, to_codes):
    build = GraphBuilder("codes")
    x = build.input("x", ("N", weight.shape[1]), "float32")
    grid = {"scale": _scalar(SCALE_X, np.float32), "zero": _scalar(ZERO_X, np.uint8)}
    x = build.node("quantize", "codes", x, **grid)
    given_ = {"x_scale": grid["scale"], "x_zero": grid["zero"], "weight": weight, "w_scale": _scalar(SCALE_W, np.float32)}
    if to_codes:
        given_ |= {"y_scale": _scalar(SCALE_Y, np.float32), "y_zero": _scalar(ZERO_Y, np.uint8)}
    y = build.node("qlinear", "y", x, bias=bias, **given_)
    if to_codes:  # seen through a product with the identity
        eye = np.eye(len(weight), dtype=np.int8)
        one, none = _scalar(1, np.float32), _scalar(0, np.uint8)
        y = build.node("qlinear", "seen", y, x_scale=one, x_zero=none, weight=eye, w_scale=one)
    return build.finish(y)


def _codes_oracle(weight, bias, codes, to_codes):
    sums = (codes.astype(np.int64) - ZERO_X) @ weight.astype(np.int64).T + bias.astype(np.int64)
    scaled = sums.astype(np.float32) * (SCALE_X * SCALE_W / SCALE_Y if to_codes else SCALE_X * SCALE_W)
    return np.clip(np.rint(scaled) + ZERO_Y, 0, 255).astype(np.float32) if to_codes else scaled


def _check_codes(rng, weight, rows, to_codes, isa):
    codes = rng.integers(0, 256, (rows, weight.shape[1]))
    x = ((codes - ZERO_X) * SCALE_X).astype(np.float32)
    bias = rng.integers(-(10**6), 10**6, len(weight)).astype(np.int32)
    got = _run(_codes_graph(weight, bias, to_codes), x, isa=isa)
    np.testing.assert_array_equal(got, _codes_oracle(weight, bias, codes, to_codes))


@quick
@given(layer=layers(), with_bias=st.booleans())
def test_float32_is_within_rounding_of_float64(layer, with_bias):
    columns, inputs, zeros, rows, seed = layer
    rng = np.random.default_rng(seed)
    weight = np.where(_mask(rng, columns, inputs, zeros), 0, rng.standard_normal((columns, inputs))).astype(np.float32)
    bias = rng.standard_normal(columns).astype(np.float32) if with_bias else None
    _check_floats(_linear(weight, bias), weight, bias, rng.standard_normal((rows, inputs)).astype(np.float32))


@each_isa
@quick
@given(layer=layers(), to_codes=st.booleans())
def test_codes_are_exact(isa, layer, to_codes):
    columns, inputs, zeros, rows, seed = layer
    rng = np.random.default_rng(seed)
    weight = np.where(_mask(rng, columns, inputs, zeros), 0, rng.integers(-127, 128, (columns, inputs))).astype(np.int8)
    _check_codes(rng, weight, rows, to_codes, isa)


SHAPES = [(1, 1), (17, 1), (1, 17), (17, 17), (16, 16), (15, 64), (33, 260), (3, 1000), (1000, 3)]


@pytest.mark.parametrize("columns, inputs", SHAPES)
@pytest.mark.parametrize("pattern", ["none", "one at the end", "one a row", "all", "one long row", "first columns empty"])
@pytest.mark.parametrize("rows", [1, 3, 4, 16, 17, 33, 49, 64, 65])
def test_patterns_at_the_edges(rng, columns, inputs, pattern, rows):
    kept = np.zeros((columns, inputs), bool)
    if pattern == "one at the end":
        kept[-1, -1] = True
    elif pattern == "one a row":
        kept[np.arange(columns), np.arange(columns) % inputs] = True
    elif pattern == "all":
        kept[:] = True
    elif pattern == "one long row":
        kept[columns // 2], kept[:, 0] = True, True
    elif pattern == "first columns empty":
        kept[columns // 2 :] = True
    weight = (rng.standard_normal(kept.shape) * kept).astype(np.float32)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    _check_floats(_linear(weight, None), weight, None, x)
    codes = (rng.integers(1, 128, kept.shape) * kept).astype(np.int8)
    _check_codes(rng, codes, rows, rows % 2 == 0, "auto")


@pytest.mark.parametrize("extreme", [-127, 127])
@each_isa
def test_codes_at_their_ends_do_not_saturate_on_the_way(rng, isa, extreme):
    weight = np.full((18, 300), extreme, np.int8)
    weight[:, ::3] = 0
    for codes in (np.full((20, 300), 255), np.zeros((20, 300), int)):
        x = ((codes - ZERO_X) * SCALE_X).astype(np.float32)
        bias = np.zeros(18, np.int32)
        for rows in (1, 20):
            got = _run(_codes_graph(weight, bias, False), x[:rows], isa=isa)
            np.testing.assert_array_equal(got, _codes_oracle(weight, bias, codes[:rows], False))


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("stored", ["float16", "int8"])
def test_weights_that_are_widened(rng, stored, rows):
    codes = np.where(_mask(rng, 37, 90, 0.8), 0, rng.integers(-127, 128, (37, 90))).astype(np.int8)
    scale = rng.uniform(0.001, 0.1, 37).astype(np.float32)
    halves = Weight((codes * scale[:, None]).astype(np.float16))
    weight = halves if stored == "float16" else Weight(codes, Affine(scale, 0, 8))
    bias = rng.standard_normal(37).astype(np.float32)
    graph = _linear(np.zeros((37, 90), np.float32), bias)
    graph = replace(graph, weights={**graph.weights, "y.weight": weight})
    _check_floats(graph, weight.dense(), bias, rng.standard_normal((rows, 90)).astype(np.float32))


@pytest.mark.parametrize("rows", [1, 3, 5, 64, 100])
@each_isa
def test_scales_of_rows(rng, isa, rows):
    """Each row has a grid of its own, and its place in the batch must not matter."""
    build = GraphBuilder("dynamic")
    x = build.input("x", ("N", 50), "float32")
    scale, zero = build.node("row_scale", "s", x, axes=1), build.node("row_zero", "z", x, axes=1)
    codes = build.node("quantize", "codes", x, scale, zero)
    weight = np.where(_mask(rng, 33, 50, 0.7), 0, rng.integers(-127, 128, (33, 50))).astype(np.int8)
    w_scale, bias = rng.uniform(0.01, 0.1, 33).astype(np.float32), rng.standard_normal(33).astype(np.float32)
    graph = build.finish(build.node("qlinear", "y", codes, scale, zero, weight=weight, w_scale=w_scale, bias=bias))
    batch = (rng.standard_normal((rows, 50)) * rng.uniform(0.1, 100, (rows, 1))).astype(np.float32)
    got, seen = _run(graph, batch, isa=isa), {}
    executable = COMPILED.configured(RuntimeOptions(isa=isa, sparse="always")).prepare(graph)
    executable.observe(lambda node, value, _: seen.update({node.output: value}), batch)
    sums = (seen["codes"].astype(np.int64) - seen["z"]) @ weight.astype(np.int64).T
    np.testing.assert_array_equal(got, sums.astype(np.float32) * (seen["s"] * w_scale) + bias)
    np.testing.assert_allclose(got, NUMPY.prepare(graph)(batch), rtol=1e-4, atol=1e-4 * np.abs(got).max())
    np.testing.assert_array_equal(got, _run(graph, batch, "never", isa))


def test_relu_is_part_of_the_product(rng):
    weight = np.where(_mask(rng, 20, 30, 0.6), 0, rng.standard_normal((20, 30))).astype(np.float32)
    build = GraphBuilder("relu")
    x = build.input("x", ("N", 30), "float32")
    graph = build.finish(build.node("relu", "r", build.node("linear", "y", x, weight=weight)))
    for rows in (1, 30):
        batch = rng.standard_normal((rows, 30)).astype(np.float32)
        np.testing.assert_allclose(_run(graph, batch), np.maximum(batch @ weight.T, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 20])
def test_not_a_number_stays_visible_where_a_weight_reads_it(rng, rows):
    weight = np.zeros((18, 20), np.float32)
    weight[3, 5], weight[4, 6] = 2.0, 1.0
    x = rng.standard_normal((rows, 20)).astype(np.float32)
    x[-1, 5] = np.nan
    with np.errstate(invalid="ignore"):
        got = _run(_linear(weight, None), x)
    assert np.isnan(got[-1, 3]) and got[-1, 4] == x[-1, 6]


# packing


@st.composite
def words(draw):
    columns, inputs, zeros, _, seed = draw(layers())
    rng = np.random.default_rng(seed)
    return np.where(_mask(rng, columns, inputs, zeros), 0, rng.integers(-(2**31), 2**31, (columns, inputs))).astype(np.int32)


@quick
@given(words=words())
def test_packing_keeps_every_word_once(words):
    few, many = pack_few(words), pack_many(words)
    assert few.values.size == count_few(words) and many.values.size == count_many(words)
    got = np.zeros_like(words)
    for panel, (start, end) in enumerate(zip(few.starts[:-1], few.starts[1:], strict=True)):
        for lane, column in enumerate(few.order[LANES * panel : LANES * (panel + 1)]):
            if column < len(words):
                np.add.at(got[column], few.places[start:end, lane], few.values[start:end, lane])
            else:
                assert not few.values[start:end, lane].any()
    np.testing.assert_array_equal(got, words)
    got = np.zeros_like(words)
    for column, (start, end) in enumerate(zip(many.starts[:-1], many.starts[1:], strict=True)):
        np.add.at(got[column], many.places[start:end], many.values[start:end])
    np.testing.assert_array_equal(got, words)
    np.testing.assert_array_equal(np.sort(few.order), np.arange(len(few.order)))


def test_columns_of_one_length_need_no_filling_up(rng):
    weight = np.zeros((64, 32), np.float32)
    for row in weight:
        row[rng.choice(32, 8, replace=False)] = 1
    assert count_few(weight) == count_many(weight) == 64 * 8


def test_codes_are_grouped_by_four():
    weight = np.array([[1, 0, 0, -1, 0, 0, 0, 0, 5]], np.int8)
    np.testing.assert_array_equal(words_of(weight), np.array([[1 - (1 << 24), 0, 5]], np.int32))
