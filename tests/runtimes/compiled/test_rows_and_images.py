"""What works element by element, row by row or window by window, at widths that are no whole vectors."""

import numpy as np
import pytest
from compiled_cases import check_against_numpy, check_same, codes_input, observed, one_node, runtime, scalar
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Affine, GraphBuilder, Weight
from mlperf_opt.ops import OPS
from mlperf_opt.runtimes import NUMPY

often = settings(max_examples=150, deadline=None)
SEEDS, ROWS, WIDTHS = st.integers(0, 99), st.integers(1, 40), st.integers(1, 70)


def _f(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@often
@given(st.sampled_from(["relu", "gelu", "softmax"]), WIDTHS, ROWS, st.sampled_from([1e-6, 1.0, 30.0, 1e4]), SEEDS)
def test_activations(op, width, rows, size, seed):
    graph = one_node(op, ("N", width))
    check_against_numpy(graph, _f(seed, rows, width) * np.float32(size), exact=op == "relu")


@often
@given(WIDTHS, ROWS, st.sampled_from([1e-6, 1.0, 1e4]), st.sampled_from([1e-5, 1e-2]), SEEDS)
def test_layer_norm(width, rows, size, eps, seed):
    graph = one_node("layer_norm", ("N", width), gamma=_f(seed + 1, width), beta=_f(seed + 2, width), eps=eps)
    with np.errstate(all="ignore"):
        x = _f(seed, rows, width) * np.float32(size) + np.float32(size / 3)
        expected = NUMPY.prepare(graph)(x)
        # of a row of one value what is left of the mean is rounding
        floor = 1e-4 * float(np.abs(expected).max()) if width > 1 else 1.0
        check_same(runtime().prepare(graph)(x), expected, exact=False, floor=floor if size > 1 or width == 1 else 1e-36)


@often
@given(WIDTHS, ROWS, st.sampled_from([1e-38, 1e-30, 3e-7, 0.1, 1.0, 1e30, 3e36]), st.sampled_from([0, 127, 255]), SEEDS)
def test_quantize_rounds_halves_to_even(width, rows, scale, zero, seed):
    """Values on halves of steps, beside them, and far outside the grid."""
    rng = np.random.default_rng(seed)
    halves = rng.integers(-300, 300, (rows, width)) + 0.5
    x = np.clip(halves * np.float64(np.float32(scale)), -3e38, 3e38).astype(np.float32)
    x = np.where(rng.random(x.shape) < 0.3, np.nextafter(x, np.float32(np.inf)), x)
    x = np.where(rng.random(x.shape) < 0.3, np.nextafter(x, np.float32(-np.inf)), x)
    x = np.where(rng.random(x.shape) < 0.05, np.float32(3e38), x)
    graph = one_node("quantize", ("N", width), scale=scalar(scale), zero=scalar(zero, np.uint8))
    with np.errstate(all="ignore"):
        expected = NUMPY.prepare(graph)(x)
    np.testing.assert_array_equal(runtime().prepare(graph)(x), expected)


@often
@given(WIDTHS, ROWS, st.sampled_from([1e-40, 1e-6, 1.0, 1e30, 3e37]), st.sampled_from([-1, 0, 1]), SEEDS)
def test_the_grid_of_a_row(width, rows, size, sign, seed):
    """Rows of one sign, of zeros, and of both signs: the scale to the last bit, and the codes on it."""
    build = GraphBuilder("q")
    x = build.input("x", ("N", width), "float32")
    scale, zero = build.node("row_scale", "s", x, axes=1), build.node("row_zero", "z", x, axes=1)
    codes = build.node("quantize", "codes", x, scale, zero)
    weight = np.eye(width, dtype=np.int8)
    graph = build.finish(build.node("qlinear", "y", codes, scale, zero, weight=weight, w_scale=scalar(1)))
    with np.errstate(all="ignore"):
        batch = _f(seed, rows, width) * np.float32(size)
    batch = np.abs(batch) * np.float32(sign) if sign else batch
    batch[0] = 0
    found = observed(graph, batch)
    for node in graph.nodes[:2]:
        np.testing.assert_array_equal(found[node.output], OPS[node.op].forward(batch, axes=1))
    check_against_numpy(graph, batch, exact=True)


@often
@given(
    st.sampled_from(["max_pool2d", "avg_pool2d"]), st.integers(1, 20), st.integers(1, 4), st.integers(1, 4),
    st.integers(4, 11), st.integers(4, 11), st.integers(1, 5), SEEDS,
)  # fmt: skip
def test_pools(op, channels, size, stride, height, width, rows, seed):
    graph = one_node(op, ("N", channels, height, width), size=size, stride=stride)
    x = _f(seed, rows, channels, height, width)
    check_against_numpy(graph, x, exact=op == "max_pool2d")
    if op == "max_pool2d":
        x.reshape(-1)[np.random.default_rng(seed).integers(0, x.size, 3)] = np.nan
        check_against_numpy(graph, x, exact=True)


@often
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(4, 9), st.integers(4, 9), st.booleans(), SEEDS)
def test_pools_of_codes(channels, size, stride, height, width, flat, seed):
    """Behind them codes go on, to a convolution with padding or to a layer that reads them flat."""
    rng = np.random.default_rng(seed)
    build = GraphBuilder("q")
    x = build.node("max_pool2d", "pool", codes_input(build, (channels, height, width), 9), size=size, stride=stride)
    h, w = ((side - size) // stride + 1 for side in (height, width))
    grid = {"x_scale": scalar(1), "x_zero": scalar(9, np.uint8), "w_scale": scalar(1)}
    if flat:
        weight = rng.integers(-9, 9, (5, channels * h * w)).astype(np.int8)
        y = build.node("qlinear", "y", build.node("flatten", "flat", x), weight=weight, **grid)
    else:
        weight = rng.integers(-9, 9, (3, channels, 1, 1)).astype(np.int8)
        y = build.node("qconv2d", "y", x, weight=weight, **grid, stride=1, padding=2)
    batch = rng.integers(-9, 247, (3, channels, height, width)).astype(np.float32)
    check_against_numpy(build.finish(y), batch, exact=True)


def _table(kind, rng, rows, width):
    if kind == "int8":
        return Weight(
            rng.integers(-127, 128, (rows, width)).astype(np.int8), Affine(rng.random(rows).astype(np.float32) + 1, 0, 8)
        )
    return Weight(rng.normal(size=(rows, width)).astype(kind))


@often
@given(
    st.sampled_from(["float32", "float16", "int8"]), st.sampled_from(["float32", "float16", "int8"]),
    st.integers(1, 40), WIDTHS, st.integers(1, 6), st.integers(1, 30), st.sampled_from(["learned", "sinusoidal"]), SEEDS,
)  # fmt: skip
def test_lookups_and_positions(kind, places_kind, words, width, rows, time, encoding, seed):
    rng = np.random.default_rng(seed)
    build = GraphBuilder("t")
    x = build.node("embedding", "e", build.input("t", ("N", "T"), "int64"), table=np.zeros((words, width), np.float32))
    if encoding == "learned":
        y = build.node("learned_positions", "y", x, table=np.zeros((30, width), np.float32))
    else:
        y = build.node("sinusoidal_positions", "y", x, context=30)
    graph = build.finish(y).with_weights({"e.table": _table(kind, rng, words, width)})
    if encoding == "learned":
        graph = graph.with_weights({"y.table": _table(places_kind, rng, 30, width)})
    check_against_numpy(graph, rng.integers(0, words, (rows, time)), exact=True)


@pytest.mark.parametrize("token", [-1, 7, 2**40])
def test_a_token_outside_the_table_is_refused(token):
    build = GraphBuilder("t")
    tokens = build.input("t", ("N", "T"), "int64")
    graph = build.finish(build.node("embedding", "e", tokens, table=np.ones((7, 3), np.float32)))
    for chosen in (NUMPY, runtime()):
        with pytest.raises(GraphError, match=r"0\.\.6"):
            chosen.prepare(graph)(np.array([[1, token]]))


@often
@given(
    st.lists(st.sampled_from(["relu", "gelu", "add", "max_pool2d", "conv", "padded", "avg_pool2d"]), min_size=1, max_size=6),
    st.integers(1, 18), st.integers(7, 10), st.booleans(), SEEDS,
)  # fmt: skip
def test_images_through_any_chain(chain, channels, size, flat, seed):
    """Layouts, halos and reuse of memory: every value is what numpy says, whatever came before it."""
    rng = np.random.default_rng(seed)
    build = GraphBuilder("f")
    values, side = [build.input("x", ("N", channels, size, size), "float32")], size
    for place, op in enumerate(chain):
        name, x = f"n{place}", values[-1]
        if op in ("conv", "padded"):
            weight = rng.normal(size=(channels, channels, 3, 3)).astype(np.float32) / channels
            padding = int(op == "padded")
            assume(side + 2 * padding >= 3)
            x, side = build.node("conv2d", name, x, weight=weight, stride=1, padding=padding), side - 2 + 2 * padding
            values = [x]
        elif op.endswith("pool2d"):
            assume(side >= 2)
            values, side = [build.node(op, name, x, size=2, stride=1)], side - 1
        elif op == "add":
            values.append(build.node("add", name, x, values[0]))
        else:
            values.append(build.node(op, name, x))
    y = build.node("flatten", "flat", values[-1]) if flat else values[-1]
    if flat:
        y = build.node("linear", "y", y, weight=rng.normal(size=(3, channels * side * side)).astype(np.float32))
    check_against_numpy(build.finish(y), rng.normal(size=(3, channels, size, size)).astype(np.float32), exact=False)
