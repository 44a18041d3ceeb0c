"""Codebook: weights that share a few values; and what a legal one is."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import (
    Affine,
    Codebook,
    Dense,
    GraphBuilder,
    Weight,
    array_specs,
    arrays,
    graph_hash,
    rebuild,
    structure,
    verify,
)
from mlperf_opt.passes import Prune
from mlperf_opt.runtimes import RUNTIMES

CENTROIDS = np.array([-2, -0.5, 0, 0.25, 3], np.float32)
FINITE = st.floats(-1000, 1000, width=16)  # whose halves are exact in float64


def shared(codes, centroids=CENTROIDS):
    return Weight(np.array(codes, np.uint8), Codebook(np.asarray(centroids, np.float32)))


def graph_with(weight, **others):
    build = GraphBuilder("g")
    x = build.input("x", ("N", weight.values.shape[1]), "float32")
    graph = build.finish(build.node("linear", "fc", x, weight=np.zeros(weight.values.shape, np.float32)))
    return graph.with_weights({"fc.weight": weight, **others})


def test_a_code_means_its_centroid_and_comes_back():
    weight = shared([[0, 1, 2], [3, 4, 4]])
    real = weight.dense()
    np.testing.assert_array_equal(real, np.array([[-2, -0.5, 0], [0.25, 3, 3]], np.float32), strict=True)
    np.testing.assert_array_equal(weight.encode(real).values, weight.values, strict=True)
    np.testing.assert_array_equal(weight.part("codes"), weight.values)
    np.testing.assert_array_equal(weight.part("centroids"), CENTROIDS)
    np.testing.assert_array_equal(weight.part(""), real)
    np.testing.assert_array_equal(weight.is_zero, real == 0)
    with pytest.raises(GraphError, match="Codebook has no part 'scale'"):
        weight.part("scale")


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 256), elements=FINITE, unique=True),
    hnp.arrays(np.float32, st.integers(0, 30), elements=FINITE),
)
def test_encode_finds_the_nearest(centroids, real):
    centroids = np.unique(centroids)  # also of -0.0 and 0.0 one stays
    real = np.where((real == 0) & ~(centroids == 0).any(), np.float32(1), real)
    found = shared(np.zeros(real.shape), centroids).encode(real)
    distance = np.abs(centroids.astype(np.float64)[found.values] - real)
    best = np.abs(centroids.astype(np.float64)[:, None] - real).min(axis=0)
    np.testing.assert_array_equal(distance, best)


def test_zero_stays_exact_or_is_refused():
    weight = shared([[0, 0, 0]])
    assert weight.zero == 2
    np.testing.assert_array_equal(weight.encode(np.array([[0, 0.05, -0.2]], np.float32)).dense(), 0)
    without = shared([[0, 1]], [-1, 1])
    np.testing.assert_array_equal(without.encode(np.array([[0.1, -0.1]], np.float32)).values, [[1, 0]])
    for act in (lambda: without.zero, lambda: without.encode(np.zeros((1, 2), np.float32))):
        with pytest.raises(GraphError, match="without a centroid 0.0"):
            act()
    assert not without.is_zero.any()
    with pytest.raises(GraphError, match="not finite"):
        weight.encode(np.array([[np.nan]], np.float32))


def test_prune_finds_the_code_of_zero():
    weight = shared([[0, 1, 3, 4], [4, 1, 0, 0]])
    pruned = Prune(sparsity=0.5)(graph_with(weight), None).graph.weights["fc.weight"]
    assert pruned.is_zero.sum() == 4
    np.testing.assert_array_equal(pruned.dense(), [[0, 0, 0, 3], [3, 0, -2, -2]])
    with pytest.raises(GraphError, match="without a centroid 0.0"):
        Prune(sparsity=0.5)(graph_with(shared([[0, 1]], [-1, 1])), None)


def test_the_arrays_are_read_only_and_not_shared():
    mine = CENTROIDS.copy()
    weight = Weight(np.zeros((1, 2), np.uint8), Codebook(mine))
    mine[0] = 9
    assert weight.encoding.centroids[0] == -2
    with pytest.raises(ValueError, match="read-only"):
        weight.encoding.centroids[0] = 3


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (shared([[0, 5]]), "its codes must be uint8 indices of 5 centroids"),
        (Weight(np.zeros((1, 2), np.int8), Codebook(CENTROIDS)), "its codes must be uint8 indices"),
        (shared([[0, 0]], [1, 1]), "its centroids must ascend, each once"),
        (shared([[0, 0]], [-0.0, 0.0]), "its centroids must ascend, each once"),
        (shared([[0, 0]], [2, 1]), "its centroids must ascend, each once"),
        (shared([[0, 0]], [1, np.nan]), "its centroids must ascend|not finite"),
        (shared([[0, 0]], [np.nan]), "not finite"),
        (shared([[0, 0]], [1, np.inf]), "not finite"),
        (shared([[0, 0]], []), "1 to 256 float32 centroids"),
        (shared([[0, 0]], np.arange(257)), "1 to 256 float32 centroids"),
        (shared([[0, 0]], [[1], [2]]), "1 to 256 float32 centroids"),
        (Weight(np.zeros((1, 2), np.uint8), Codebook(np.zeros(1))), "1 to 256 float32 centroids"),
    ],
)
def test_an_illegal_codebook_is_named(weight, words):
    with pytest.raises(GraphError, match=f"weight 'fc.weight'.*({words})"):
        verify(graph_with(weight))


@pytest.mark.parametrize("count", [1, 2, 255, 256])
def test_structure_and_arrays_are_the_whole_graph(count):
    rng = np.random.default_rng(0)
    graph = verify(graph_with(shared(rng.integers(0, count, (3, 4)), np.arange(count))))
    data = json.loads(json.dumps(structure(graph)))
    stored = arrays(graph)
    assert {name: array.shape for name, array in stored.items()} == {"fc.weight": (3, 4), "fc.weight:centroids": (count,)}
    assert array_specs(data).keys() == stored.keys()
    back = verify(rebuild(data, stored))
    assert graph_hash(back) == graph_hash(graph)
    assert graph_hash(graph) != graph_hash(graph_with(shared(graph.weights["fc.weight"].values, np.arange(count) + 0.5)))


@pytest.mark.parametrize("count", [0, -1, 257, 2.0, "2", None, True, 10**30])
def test_an_impossible_number_of_centroids_is_refused(count):
    data = json.loads(json.dumps(structure(graph_with(shared([[0, 1]])))))
    data["weights"][0][3] = {"codebook": count}
    with pytest.raises(GraphError, match="the structure of the graph is malformed"):
        array_specs(data)


# every runtime reads what any encoding means


def encoded(real, kind):
    """(M, ...) real values in an encoding."""
    if kind == "codebook":
        spread = np.unique(np.append(np.quantile(real, np.linspace(0, 1, 9)), 0)).astype(np.float32)
        return Weight(np.zeros(real.shape, np.uint8), Codebook(spread)).encode(real)
    bits, axis = kind
    scale = np.abs(real).max(axis=None if axis is None else tuple(range(1, real.ndim))) / (2 ** (bits - 1) - 1)
    return Weight(np.zeros(real.shape, np.int8), Affine(np.asarray(scale, np.float32), axis, bits)).encode(real)


def layer(op, kind):
    """A graph of one op on an encoded weight, the same with the real values, and an input."""
    rng = np.random.default_rng(0)
    build = GraphBuilder(op)
    if op == "linear":
        x = rng.normal(size=(5, 24)).astype(np.float32)
        given = build.node(op, "y", build.input("x", ("N", 24), "float32"), weight=np.zeros((40, 24), np.float32))
    elif op == "conv2d":
        x = rng.normal(size=(5, 3, 9, 9)).astype(np.float32)
        source, zeros = build.input("x", ("N", 3, 9, 9), "float32"), np.zeros((20, 3, 5, 5), np.float32)
        given = build.node(op, "y", source, weight=zeros, stride=1, padding=0)
    else:
        x = rng.integers(0, 12, (5, 7))
        given = build.node(op, "y", build.input("x", ("N", "T"), "int64"), table=np.zeros((12, 16), np.float32))
    graph = build.finish(given)
    ((name, weight),) = graph.weights.items()
    new = encoded(rng.normal(size=weight.values.shape).astype(np.float32), kind)
    return verify(graph.with_weights({name: new})), graph.with_weights({name: Weight(new.dense(), Dense())}), x


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=list(RUNTIMES))
@pytest.mark.parametrize("op", ["linear", "conv2d", "embedding"])
@pytest.mark.parametrize("kind", ["codebook", *((bits, axis) for bits in range(2, 9) for axis in (None, 0))], ids=str)
def test_a_float_op_on_codes_is_the_op_on_what_they_mean(runtime, op, kind):
    graph, plain, x = layer(op, kind)
    found, expected = (runtime.prepare(g)(x) for g in (graph, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
def test_integer_products_take_codes_of_any_bits(bits):
    """qlinear on low-bit codes: every runtime has the same sums."""
    rng = np.random.default_rng(bits)
    build = GraphBuilder("q")
    x = build.input("x", ("N", 24), "float32")
    codes = build.node("quantize", "codes", x, scale=np.float32(0.05), zero=np.uint8(120))
    weight = encoded(rng.normal(size=(40, 24)).astype(np.float32), (bits, 0))
    graph = build.finish(codes)
    node = type(graph.nodes[0])(
        "qlinear", ("codes", graph.nodes[0].inputs[1], graph.nodes[0].inputs[2], "w:codes", "w:scale", "", "", ""), "y"
    )
    graph = verify(
        type(graph)("q", (*graph.nodes, node), {**graph.weights, "w": weight}, graph.inputs, ("y",)),
    )
    rows = rng.normal(size=(6, 24)).astype(np.float32)
    expected = RUNTIMES["numpy"].prepare(graph)(rows)
    assert len(np.unique(weight.values)) <= 2**bits - 1
    for runtime in RUNTIMES.values():
        np.testing.assert_allclose(runtime.prepare(graph)(rows), expected, rtol=1e-5, atol=1e-5)
