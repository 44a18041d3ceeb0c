"""quant: what the rewritten graph looks like, and that it means what the float graph means."""

import numpy as np
import pytest
from pass_graphs import Untouchable, calibration_data, linear_graph, ops, quality, run_pass

from mlperf_opt.data import Dataset
from mlperf_opt.errors import ConfigError, PassError
from mlperf_opt.graph import Affine, Dense, GraphBuilder, verify
from mlperf_opt.networks import DigitMLP, MinimalTransformer
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import NUMPY

RNG = np.random.default_rng(11)
SCHEMES = ["static", "dynamic", "weight_only"]


def _f(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def _run(graph, inputs):
    return NUMPY.prepare(graph)(inputs)


def _dtypes(graph, names):
    return [graph.specs[name].dtype for name in names]


def test_mlp_stays_integer_from_the_first_product_to_the_last(mlp):
    graph = run_pass(Quant(), *mlp).graph
    assert ops(graph) == ["flatten", "quantize", "qlinear", "qlinear"]
    assert _dtypes(graph, ["flatten.codes", "fc1", "fc2"]) == ["uint8", "uint8", "float32"]
    assert graph.node("fc2").argument("x") == "fc1", "the relu between them is the grid of fc1"


def test_cnn_stays_integer_from_the_first_product_to_the_last(cnn):
    graph = run_pass(Quant(), *cnn).graph
    assert ops(graph) == ["quantize", "qconv2d", "max_pool2d", "qconv2d", "max_pool2d", "flatten", "qlinear"]
    assert _dtypes(graph, [n.output for n in graph.nodes]) == ["uint8"] * 6 + ["float32"]


def test_transformer_quantizes_what_each_group_of_products_reads(transformer):
    graph = run_pass(Quant(), *transformer).graph
    found = ops(graph)
    assert found.count("qlinear") == 2 * 6 + 1 and "linear" not in found
    assert found[0] == "qembedding" and "embedding" not in found
    # query, key and value share one: norm1, attention, norm2, gelu in each of two layers, and the last norm
    assert found.count("quantize") == 2 * 4 + 1


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_no_float_matrix_is_left(request, model, scheme, granularity):
    before, data = request.getfixturevalue(model)
    graph = run_pass(Quant(scheme=scheme, granularity=granularity), before, data).graph
    assert list(graph.matrices()) == list(before.matrices())
    for name, node in graph.matrices().items():
        weight = graph.weights[name]
        assert weight.values.dtype == np.int8
        assert isinstance(weight.encoding, Affine) and weight.encoding.bits == 8
        assert weight.encoding.axis == (0 if granularity == "channel" else None)
        codes = node.argument(node.definition.matrix)
        assert codes == (name if scheme == "weight_only" else f"{name}:codes")
        assert graph.specs[codes].dtype == ("float32" if scheme == "weight_only" else "int8")
        if scheme != "weight_only" and node.op != "qembedding":
            assert graph.specs[node.argument("x")].dtype == "uint8", "the product consumes integers"
    biases = {n: w for n, w in graph.weights.items() if n.endswith(".bias")}
    assert {w.values.dtype.name for w in biases.values()} == {"int32" if scheme == "static" else "float32"}


def test_dynamic_finds_its_ranges_while_running(cnn):
    graph = run_pass(Quant(scheme="dynamic"), *cnn).graph
    assert ops(graph)[:4] == ["row_scale", "row_zero", "quantize", "qconv2d"]
    assert graph.node("conv1").argument("y_scale") == "" and graph.specs["conv1"].dtype == "float32"
    assert [graph.node(f"{x}.scale").attributes["axes"] for x in ("x", "pool1", "flatten")] == [3, 3, 1]


# where codes may stay codes


def _residual(build, x):
    y = build.node("relu", "relu", build.node("linear", "fc1", x, weight=_f(4, 4), bias=_f(4)))
    return build.node("add", "sum", y, build.node("linear", "fc2", y, weight=_f(4, 4)))


def _read_before_relu(build, x):
    y = build.node("linear", "fc1", x, weight=_f(4, 4), bias=_f(4))
    z = build.node("linear", "fc2", build.node("relu", "relu", y), weight=_f(4, 4))
    return build.node("add", "sum", y, z)


def _gelu(build, x):
    y = build.node("gelu", "gelu", build.node("linear", "fc1", x, weight=_f(4, 4), bias=_f(4)))
    return build.node("linear", "fc2", y, weight=_f(4, 4))


def _no_relu(build, x):
    y = build.node("linear", "fc1", x, weight=_f(4, 4), bias=_f(4))
    return build.node("linear", "fc2", y, weight=_f(4, 4), bias=_f(4))


def _two_relus(build, x):
    y = build.node("linear", "fc1", x, weight=_f(4, 4), bias=_f(4))
    y = build.node("relu", "relu2", build.node("relu", "relu1", y))
    return build.node("linear", "fc2", y, weight=_f(4, 4))


def _two_readers(build, x):
    y = build.node("relu", "relu", build.node("linear", "fc1", x, weight=_f(4, 4), bias=_f(4)))
    y, z = (build.node("linear", f"fc{i}", y, weight=_f(4, 4)) for i in (2, 3))
    return build.node("add", "sum", y, z)


def _relu_first(build, x):
    return build.node("linear", "fc1", build.node("relu", "relu", x), weight=_f(4, 4), bias=_f(4))


def _relu_last(build, x):
    return build.node("relu", "relu", build.node("linear", "fc1", x, weight=_f(4, 4), bias=_f(4)))


@pytest.mark.parametrize(
    "make, expected",
    [
        (_residual, "quantize qlinear relu add quantize qlinear"),
        (_read_before_relu, "quantize qlinear relu quantize qlinear add"),
        (_gelu, "quantize qlinear gelu quantize qlinear"),
        (_no_relu, "quantize qlinear qlinear"),
        (_two_relus, "quantize qlinear relu relu quantize qlinear"),
        (_two_readers, "quantize qlinear qlinear qlinear add"),
        (_relu_first, "relu quantize qlinear"),
        (_relu_last, "quantize qlinear relu"),
    ],
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_relu_is_absorbed_only_where_nothing_else_needs_it(make, expected, scheme):
    build = GraphBuilder("tiny")
    graph = build.finish(make(build, build.input("x", ("N", 4), "float32")))
    inputs = _f(400, 4)
    quantized = run_pass(Quant(scheme=scheme), graph, calibration_data(inputs)).graph
    if scheme == "static":
        assert sorted(ops(quantized)) == sorted(expected.split())
    want, got = _run(graph, inputs), _run(quantized, inputs)
    assert np.abs(got - want).max() < 0.04 * np.abs(want).max()


def test_an_output_that_is_read_again_stays_real():
    build = GraphBuilder("tiny")
    y = build.node("linear", "fc1", build.input("x", ("N", 4), "float32"), weight=_f(4, 4), bias=_f(4))
    graph = build.finish(y, build.node("linear", "fc2", y, weight=_f(4, 4)))
    inputs = _f(200, 4)
    quantized = run_pass(Quant(), graph, calibration_data(inputs)).graph
    assert ops(quantized) == ["quantize", "qlinear", "quantize", "qlinear"]
    np.testing.assert_allclose(_run(quantized, inputs), _run(graph, inputs), atol=0.2)


def test_pooling_before_relu_keeps_both():
    build = GraphBuilder("tiny")
    x = build.input("x", ("N", 1, 4, 4), "float32")
    y = build.node("conv2d", "conv1", x, weight=_f(2, 1, 3, 3), bias=_f(2), stride=1, padding=1)
    y = build.node("relu", "relu", build.node("max_pool2d", "pool", y, size=2, stride=2))
    graph = build.finish(build.node("conv2d", "conv2", y, weight=_f(2, 2, 1, 1), stride=1, padding=0))
    inputs = _f(200, 1, 4, 4)
    quantized = run_pass(Quant(), graph, calibration_data(inputs)).graph
    want, got = _run(graph, inputs), _run(quantized, inputs)
    assert "relu" in ops(quantized)
    assert np.abs(got - want).max() < 0.04 * np.abs(want).max()


# skip


@pytest.mark.parametrize(
    "skip, expected",
    [
        (("fc1",), "flatten linear relu quantize qlinear qlinear"),
        (("fc2",), "flatten quantize qlinear relu linear relu quantize qlinear"),
        (("fc3",), "flatten quantize qlinear qlinear relu linear"),
        (("fc1", "fc2", "fc3"), "flatten linear relu linear relu linear"),
    ],
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_skipped_node_stays_float_inside_a_chain(mlp, skip, expected, scheme):
    data = mlp[1]
    graph = DigitMLP(sizes=(64, 16, 16, 10)).build("mlp3", np.random.default_rng(2))
    quantized = run_pass(Quant(scheme=scheme, skip=skip), graph, data).graph
    if scheme == "static":
        assert ops(quantized) == expected.split()
    for name in skip:
        assert quantized.weights[f"{name}.weight"] is graph.weights[f"{name}.weight"]
        assert quantized.weights[f"{name}.bias"] is graph.weights[f"{name}.bias"]
    want, got = (_run(g, data.calibration.inputs) for g in (graph, quantized))
    assert np.abs(got - want).max() < 0.04 * np.abs(want).max()


def test_a_skipped_convolution_and_embedding_stay_float(cnn, transformer):
    graph = run_pass(Quant(skip=("conv2",)), *cnn).graph
    expected = "quantize qconv2d relu max_pool2d conv2d relu max_pool2d flatten quantize qlinear"
    assert " ".join(ops(graph)) == expected
    assert quality(graph, cnn[1]) >= quality(*cnn) - 0.01
    graph = run_pass(Quant(skip=("embed",)), *transformer).graph
    assert ops(graph)[0] == "embedding" and graph.weights["embed.table"].values.dtype == np.float32


def test_fp16_halves_all_but_what_is_skipped(mlp, transformer):
    graph = run_pass(Quant(dtype="fp16"), *transformer).graph
    assert {w.values.dtype.name for w in graph.weights.values()} == {"float16"}
    assert ops(graph) == ops(transformer[0])
    graph = run_pass(Quant(dtype="fp16", skip=("fc1",)), *mlp).graph
    kinds = {name: (w.values.dtype.name, w.encoding) for name, w in graph.weights.items()}
    single, half = ("float32", Dense()), ("float16", Dense())
    assert kinds == {"fc1.weight": single, "fc1.bias": single, "fc2.weight": half, "fc2.bias": half}
    np.testing.assert_array_equal(graph.weights["fc2.weight"].values, mlp[0].weights["fc2.weight"].values.astype(np.float16))


# refusals


@pytest.mark.parametrize("first", [*({"scheme": s} for s in SCHEMES), {"dtype": "fp16"}], ids=str)
def test_quantizing_twice_is_refused(mlp, first):
    graph = run_pass(Quant(**first), *mlp).graph
    with pytest.raises(PassError, match=r"^quant: the weights of mlp are quantized already$"):
        Quant().check(graph)


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_an_unknown_node_is_refused(mlp, dtype):
    with pytest.raises(PassError, match=r"^quant: skip=fc9: no such node; did you mean 'fc[12]'"):
        Quant(dtype=dtype, skip=("fc9",)).check(mlp[0])


@pytest.mark.parametrize("name", ["fc1.weight", "fc1.bias"])
def test_fp16_overflow_is_refused_before_any_work(name):
    arrays = {"fc1.weight": np.ones((2, 2), np.float32), "fc1.bias": np.ones(2, np.float32)}
    arrays[name].reshape(-1)[1] = -70000
    graph = linear_graph((arrays["fc1.weight"], arrays["fc1.bias"]))
    with pytest.raises(PassError, match=f"^quant: weight '{name}' holds values beyond 65504"):
        Quant(dtype="fp16").check(graph)
    arrays[name].reshape(-1)[1] = -65504
    graph = linear_graph((arrays["fc1.weight"], arrays["fc1.bias"]))
    half = run_pass(Quant(dtype="fp16"), graph, calibration_data(np.zeros((1, 2), np.float32))).graph
    assert half.weights[name].values.min() == -65504


@pytest.mark.parametrize("percentile", [50, 0, -1, 100.1, float("nan")])
def test_an_impossible_percentile_is_refused(percentile):
    with pytest.raises(ConfigError, match=r"^percentile=.*: expected more than 50 and at most 100"):
        Quant(percentile=percentile)


@pytest.mark.parametrize("settings", [{"calibration": m} for m in ("minmax", "percentile", "mse")], ids=str)
def test_ranges_come_from_the_calibration_split_alone(cnn, settings):
    graph, data = cnn
    blind = Dataset("digits", "classification", Untouchable(), data.calibration, Untouchable())
    quantized = run_pass(Quant(**settings), graph, blind).graph
    # the input holds 0 .. 1: 1/255 = 0.0039216, and the numbers of 8 bits stand 2^-15 apart there: 128.5 steps
    if settings["calibration"] == "minmax":
        assert float(quantized.weights["x.scale"].values) == 129 / 2**15
    half = Dataset("digits", "classification", Untouchable(), _scaled(data.calibration, 0.5), Untouchable())
    halved = run_pass(Quant(**settings), graph, half).graph
    scales = [float(g.weights["x.scale"].values) for g in (quantized, halved)]
    assert scales[1] == pytest.approx(scales[0] / 2, rel=0.01)


def _scaled(split, factor):
    return type(split)(split.inputs * np.float32(factor), split.targets)


@pytest.mark.parametrize("scheme", ["dynamic", "weight_only"])
def test_other_schemes_look_at_no_data(cnn, scheme):
    blind = Dataset("digits", "classification", *[Untouchable()] * 3)
    assert verify(run_pass(Quant(scheme=scheme), cnn[0], blind).graph)


def test_prune_before_or_after_keeps_its_zeros(mlp):
    graph, data = mlp
    after = run_pass(Prune(sparsity=0.5), run_pass(Quant(), graph, data).graph, data).graph
    before = run_pass(Quant(), run_pass(Prune(sparsity=0.5), graph, data).graph, data).graph
    for result in (after, before):
        zeros = sum((result.weights[name].values == 0).sum() for name in result.matrices())
        assert zeros >= (64 * 32 + 32 * 10) // 2


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_a_cached_graph_can_come_after(transformer, positions):
    graph = MinimalTransformer(positions=positions, layers=1).build("small", np.random.default_rng(0))
    cached = run_pass(KvCache(), run_pass(Quant(), graph, transformer[1]).graph, transformer[1]).graph
    assert "cached_attention" in ops(cached) and "qlinear" in ops(cached)
