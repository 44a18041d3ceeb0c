"""Products in any shape, with any scale, zero point and bias: codes bit for bit, floats to the last places."""

import numpy as np
import pytest
from compiled_cases import check_against_numpy, check_same, codes_input, f32, model, runtime, scalar
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_opt.graph import Affine, Dense, GraphBuilder, Weight, verify
from mlperf_opt.kernels import machine, opcodes
from mlperf_opt.kernels.jit import features
from mlperf_opt.runtimes import NUMPY
from mlperf_opt.runtimes.compiled.lowerings import LOWERINGS
from mlperf_opt.runtimes.compiled.program import Program

ISAS = st.sampled_from(["auto", "vnni", "portable"])
ZEROS = st.sampled_from([0, 1, 127, 255])
EXTREMES = st.sampled_from([1e-30, 1e-10, 0.003, 1.0, 7.5, 1e10, 3e38])
SIZES = st.integers(1, 130)
often = settings(max_examples=150, deadline=None)


def _codes(rng, *shape):
    return rng.integers(-127, 128, shape).astype(np.int8)


def _rows(rng, zero, *shape):
    """Codes as the floats that `codes_input` makes them of, the ends more often than by chance."""
    codes = rng.integers(0, 256, shape)
    ends = rng.random(shape)
    return (np.where(ends < 0.1, 0, np.where(ends > 0.9, 255, codes)) - zero).astype(np.float32)


def _bias(rng, kind, columns):
    if kind == "int32":
        return rng.integers(-(2**30), 2**30, columns, endpoint=True).astype(np.int32)
    return None if kind == "none" else rng.normal(size=columns).astype(np.float32) * 1e3


def _grid(rng, scale, columns, per_channel):
    """Scales of a weight around ``scale``."""
    factors = rng.uniform(0.5, 1, columns if per_channel else ())
    return np.asarray(np.float32(scale) * factors.astype(np.float32), np.float32)


@st.composite
def _settings(draw):
    """What goes with any product on codes: (zero, x_scale, w_scale, per channel, bias, y_scale, y_zero, activation)."""
    to_codes = draw(st.booleans())
    return {
        "zero": draw(ZEROS),
        "x_scale": draw(EXTREMES),
        "w_scale": draw(EXTREMES),
        "per_channel": draw(st.booleans()),
        "bias": draw(st.sampled_from(["none", "int32"] if to_codes else ["none", "int32", "float"])),
        "y_scale": draw(EXTREMES) if to_codes else None,
        "y_zero": draw(ZEROS),
        "activation": "" if to_codes else draw(st.sampled_from(["", "relu"])),
    }


def _product(rng, build, op, x, weight, what, **attributes):
    """A product on codes by the drawn settings."""
    columns = len(weight)
    arguments = {
        "x_scale": scalar(what["x_scale"]),
        "x_zero": scalar(what["zero"], np.uint8),
        "weight": weight,
        "w_scale": _grid(rng, what["w_scale"], columns, what["per_channel"]),
    }
    bias = _bias(rng, what["bias"], columns)
    if bias is not None:
        arguments["bias"] = bias
    if what["y_scale"] is not None:
        arguments |= {"y_scale": scalar(what["y_scale"]), "y_zero": scalar(what["y_zero"], np.uint8)}
    if what["activation"]:
        attributes["activation"] = what["activation"]
    return build.node(op, "y", x, **arguments, **attributes)


@often
@given(SIZES, SIZES, st.integers(1, 70), _settings(), ISAS, st.integers(0, 99))
def test_qlinear(m, k, rows, what, isa, seed):
    rng = np.random.default_rng(seed)
    build = GraphBuilder("q")
    x = codes_input(build, (k,), what["zero"])
    graph = build.finish(_product(rng, build, "qlinear", x, _codes(rng, m, k), what))
    check_against_numpy(graph, _rows(rng, what["zero"], rows, k), exact=True, isa=isa)


_IMAGES = st.tuples(
    st.integers(1, 20),  # channels
    st.integers(1, 20),  # filters
    *[st.integers(1, 5)] * 2,  # kernel
    *[st.integers(5, 13)] * 2,  # image
    st.integers(1, 3),  # stride
    st.integers(0, 2),  # padding
)


@often
@given(_IMAGES, st.integers(1, 5), _settings(), ISAS, st.integers(0, 99))
def test_qconv2d(sizes, rows, what, isa, seed):
    """Codes come out through a product by ones, so that an image of codes needs no float in between."""
    c, m, kh, kw, height, width, stride, padding = sizes
    rng = np.random.default_rng(seed)
    build = GraphBuilder("q")
    x = codes_input(build, (c, height, width), what["zero"])
    y = _product(rng, build, "qconv2d", x, _codes(rng, m, c, kh, kw), what, stride=stride, padding=padding)
    if what["y_scale"] is not None:
        ones = np.eye(m, dtype=np.int8)[:, :, None, None]
        grid = {"x_scale": scalar(1), "x_zero": scalar(0, np.uint8), "w_scale": scalar(1)}
        y = build.node("qconv2d", "out", y, weight=ones, **grid, stride=1, padding=padding)
    check_against_numpy(build.finish(y), _rows(rng, what["zero"], rows, c, height, width), exact=True, isa=isa)


@often
@given(SIZES, SIZES, st.integers(1, 70), EXTREMES, ISAS, st.sampled_from(["", "relu", "gelu"]), st.integers(0, 99))
def test_dynamic_qlinear(m, k, rows, size, isa, activation, seed):
    """Each row on a grid of its own."""
    size = min(size, 1e37) if activation == "gelu" else size  # numpy's gelu doubles its value on the way
    rng = np.random.default_rng(seed)
    build = GraphBuilder("q")
    x = build.input("x", ("N", k), "float32")
    scale, zero = build.node("row_scale", "s", x, axes=1), build.node("row_zero", "z", x, axes=1)
    codes = build.node("quantize", "codes", x, scale, zero)
    weight, w_scale = _codes(rng, m, k), _grid(rng, 0.01, m, True)
    given_ = {"weight": weight, "w_scale": w_scale, "bias": _bias(rng, "float", m), "activation": activation}
    graph = build.finish(build.node("qlinear", "y", codes, scale, zero, **given_))
    batch = rng.normal(size=(rows, k)).astype(np.float32) * np.float32(size / 10)
    batch *= rng.choice(np.float32([0, 1, 1e-3]), (rows, 1))
    check_against_numpy(graph, batch, exact=activation != "gelu", isa=isa)


@often
@given(_IMAGES, st.integers(1, 5), ISAS, st.integers(0, 99))
def test_dynamic_qconv2d(sizes, rows, isa, seed):
    c, m, kh, kw, height, width, stride, padding = sizes
    rng = np.random.default_rng(seed)
    build = GraphBuilder("q")
    x = build.input("x", ("N", c, height, width), "float32")
    scale, zero = build.node("row_scale", "s", x, axes=3), build.node("row_zero", "z", x, axes=3)
    codes = build.node("quantize", "codes", x, scale, zero)
    settings_ = {"weight": _codes(rng, m, c, kh, kw), "w_scale": _grid(rng, 0.1, m, True), "bias": _bias(rng, "float", m)}
    graph = build.finish(build.node("qconv2d", "y", codes, scale, zero, **settings_, stride=stride, padding=padding))
    batch = rng.normal(size=(rows, c, height, width)).astype(np.float32) + rng.normal(size=(rows, 1, 1, 1)).astype(
        np.float32
    )
    check_against_numpy(graph, batch, exact=True, isa=isa)


def _stored(rng, kind, weight):
    """A float32, float16 or int8 weight."""
    if kind == "int8":
        axis = None if rng.random() < 0.3 else 0
        codes = np.clip(np.rint(weight * 40), -127, 127).astype(np.int8)
        return Weight(codes, Affine(_grid(rng, 0.02, len(weight), axis == 0), axis, 8))
    return Weight(weight.astype(kind), Dense())


_KINDS = st.sampled_from(["float32", "float16", "int8"])
_ACTIVATIONS = st.sampled_from(["", "relu", "gelu"])


def _with_weight(build, name, weight, y):
    graph = build.finish(y)
    return verify(graph.with_weights({name: weight}))


@often
@given(SIZES, SIZES, st.integers(1, 70), _KINDS, _ACTIVATIONS, st.booleans(), st.integers(0, 99))
def test_linear(m, k, rows, kind, activation, biased, seed):
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=m).astype(np.float32)
    build = GraphBuilder("f")
    x = build.input("x", ("N", k), "float32")
    y = build.node("linear", "y", x, weight=weight, **({"bias": bias} if biased else {}), activation=activation)
    graph = _with_weight(build, "y.weight", _stored(rng, kind, weight), y)
    check_against_numpy(graph, rng.normal(size=(rows, k)).astype(np.float32), exact=False)


@often
@given(_IMAGES, st.integers(1, 5), _KINDS, _ACTIVATIONS, st.booleans(), st.integers(0, 99))
def test_conv2d(sizes, rows, kind, activation, twice, seed):
    """Alone, and before another with padding, whose halo the first must leave alone."""
    c, m, kh, kw, height, width, stride, padding = sizes
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(m, c, kh, kw)).astype(np.float32)
    build = GraphBuilder("f")
    x = build.input("x", ("N", c, height, width), "float32")
    bias = rng.normal(size=m).astype(np.float32)
    y = build.node("conv2d", "y", x, weight=weight, bias=bias, stride=stride, padding=padding, activation=activation)
    if twice:
        second = rng.normal(size=(2, m, 1, 1)).astype(np.float32)
        y = build.node("conv2d", "again", y, weight=second, stride=1, padding=padding)
    graph = _with_weight(build, "y.weight", _stored(rng, kind, weight), y)
    check_against_numpy(graph, rng.normal(size=(rows, c, height, width)).astype(np.float32), exact=False)


@pytest.mark.parametrize("isa", ["auto", "vnni", "portable"])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums(sign, rows, isa):
    """The longest product that int32 holds, all codes at their ends, and a bias of all the rest."""
    k = 66000
    weight = np.full((3, k), 127 * sign, np.int8)
    bias = np.full(3, sign * 2**20, np.int32)
    build = GraphBuilder("q")
    x = codes_input(build, (k,), 0)
    grid = {"x_scale": scalar(1e-5), "x_zero": scalar(0, np.uint8), "w_scale": scalar(1e-3)}
    graph = build.finish(build.node("qlinear", "y", x, weight=weight, bias=bias, **grid))
    found = check_against_numpy(graph, np.full((rows, k), 255, np.float32), exact=True, isa=isa)
    np.testing.assert_allclose(found, sign * (255 * 127 * k + 2**20) * 1e-8, rtol=1e-6)


@pytest.mark.parametrize("activation", ["", "relu", "gelu"])
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_what_is_not_a_number_stays_visible(activation, rows):
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(rows, 33)).astype(np.float32)
    batch[-1, 7] = np.nan
    build = GraphBuilder("f")
    x = build.input("x", ("N", 33), "float32")
    weight = rng.normal(size=(19, 33)).astype(np.float32)
    graph = build.finish(build.node("linear", "y", x, weight=weight, activation=activation))
    found = runtime().prepare(graph)(batch)
    assert np.isnan(found[-1]).all() and np.isfinite(found[:-1]).all()
    images = rng.normal(size=(rows, 1, 6, 6)).astype(np.float32)
    images[0, 0, 2, 2] = np.nan
    build = GraphBuilder("f")
    x = build.input("x", ("N", 1, 6, 6), "float32")
    kernel = rng.normal(size=(2, 1, 3, 3)).astype(np.float32)
    graph = build.finish(build.node("conv2d", "y", x, weight=kernel, stride=1, padding=1, activation=activation))
    check_same(np.isnan(runtime().prepare(graph)(images)), np.isnan(NUMPY.prepare(graph)(images)), exact=True)


def test_a_batch_of_none():
    build = GraphBuilder("f")
    x = build.input("x", ("N", 5), "float32")
    graph = build.finish(build.node("linear", "y", x, weight=f32([1, 2, 3, 4, 5])))
    for threads in (1, 2):
        assert runtime(threads).prepare(graph)(np.zeros((0, 5), np.float32)).shape == (0, 1)


_PRODUCTS = {value for name, value in vars(opcodes).items() if name.endswith("_PRODUCT")}


@pytest.mark.parametrize(
    "before, isa, feature, wanted",
    [
        ("none", "auto", None, opcodes.FLOAT_PRODUCT),
        ("fp16", "auto", "f16c", opcodes.HALF_PRODUCT),
        ("weight_only", "auto", None, opcodes.CODES_PRODUCT),
        ("static", "vnni", "avx512vnni", opcodes.INT8_PRODUCT),
        ("static", "portable", None, opcodes.PORTABLE_PRODUCT),
    ],
)
def test_a_network_waits_for_the_products_of_its_own_kind_alone(monkeypatch, before, isa, feature, wanted):
    if feature and feature not in features():
        pytest.skip(f"this CPU lacks {feature}")
    monkeypatch.setattr(machine, "_table", np.zeros(len(machine.KERNELS), np.int64))
    Program(model("mlp", before)[0], 8, LOWERINGS, isa, "never")
    assert _PRODUCTS.intersection(np.flatnonzero(machine._table)) == {wanted}
