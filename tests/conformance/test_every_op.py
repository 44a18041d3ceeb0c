"""Every op keeps the contract of `OpDef`: one table of example calls, the same checks for all of them."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from mlperf_opt.graph import Graph, Node, Weight
from mlperf_opt.ops import OPS, Spec
from mlperf_opt.ops.onnx_form import OUT, OnnxNode
from mlperf_opt.runtimes import ONNX

_RNG = np.random.default_rng(7)
NO_ONNX = set()  # every op has an ONNX form
NO_GRADIENT = {"head_scale", "cache_write", "cached_attention", "advance", "row_scale", "row_zero"}
STRAIGHT_THROUGH = {"quantize", "dequantize", "qlinear", "qconv2d", "qembedding"}
# The arguments that carry the batch on their first axis.
BATCHED = {"x", "y", "q", "k", "v", "tokens", "offset", "logits", "targets", "codes", "x_scale", "x_zero"}
BATCHED |= {"cache", "new", "position", "lengths", "keys", "values", "zero", "value_scale", "q_sinks"}


@dataclass(frozen=True)
class Example:
    """One call of an op."""

    op: str
    arrays: tuple
    attributes: dict = field(default_factory=dict)

    @property
    def names(self):
        return [name.rstrip("?") for name in OPS[self.op].arguments]

    def __str__(self):
        shapes = "-".join("x".join(map(str, a.shape)) or "s" for a in self.arrays if a is not None)
        return f"{self.op}-{shapes}-{'-'.join(map(str, self.attributes.values()))}"


def _f(*shape):
    return np.asarray(_RNG.normal(size=shape), np.float32)


def _i(high, *shape, low=0, dtype=np.int64):
    return _RNG.integers(low, high, shape).astype(dtype)


def _u8(*shape):
    return _i(256, *shape, dtype=np.uint8)


def _s8(*shape):
    return _i(128, *shape, low=-127, dtype=np.int8)


def _scale(*shape):
    return np.asarray(_RNG.uniform(0.01, 0.1, shape), np.float32)


def _zero(value, *shape):
    return np.full(shape, value, np.uint8)


def _case(op, *arrays, **attributes):
    """Optional arguments at the end may be left out."""
    return Example(op, (*arrays, *[None] * (len(OPS[op].arguments) - len(arrays))), attributes)


_GRID, _OUT = (_scale(), _zero(100)), (np.float32(0.5).reshape(()), _zero(37))
_ROWS, _BIAS = (_scale(2, 1, 1, 1), _zero(255, 2, 1, 1, 1)), _i(99, 2, dtype=np.int32)
_IDS = np.array([[0, 2, -1], [1, -1, 2]])
EXAMPLES = [
    _case("linear", _f(3, 5), _f(4, 5), _f(4)),
    _case("linear", _f(2, 3, 1), _f(7, 1), None),
    _case("conv2d", _f(2, 1, 5, 4), _f(3, 1, 3, 3), _f(3), stride=1, padding=1),
    _case("conv2d", _f(1, 2, 7, 5), _f(3, 2, 3, 2), None, stride=2, padding=0),
    _case("conv2d", _f(2, 3, 4, 4), _f(1, 3, 2, 2), _f(1), stride=3, padding=2),
    _case("linear", _f(3, 5), _f(4, 5), _f(4), activation="relu"),
    _case("linear", _f(2, 3, 4), _f(5, 4), None, activation="gelu"),
    _case("conv2d", _f(2, 2, 5, 4), _f(3, 2, 3, 3), _f(3), stride=1, padding=1, activation="relu"),
    _case("conv2d", _f(1, 2, 4, 5), _f(3, 2, 2, 3), None, stride=2, padding=1, activation="gelu"),
    _case("relu", _f(3, 4)),
    _case("relu", _f(2, 1, 3, 5)),
    _case("gelu", _f(3, 4) * 3),
    _case("gelu", _f(1, 2, 3)),
    _case("softmax", _f(3, 5) * 4),
    _case("softmax", _f(2, 3, 1)),
    _case("max_pool2d", _f(2, 3, 4, 6), size=2, stride=2),
    _case("max_pool2d", _f(1, 1, 7, 5), size=3, stride=2),
    _case("max_pool2d", _u8(2, 2, 5, 5), size=2, stride=2),
    _case("avg_pool2d", _f(2, 3, 4, 6), size=2, stride=2),
    _case("avg_pool2d", _f(1, 1, 5, 7), size=3, stride=1),
    _case("flatten", _f(2, 3, 4, 1)),
    _case("flatten", _u8(3, 2)),
    _case("add", _f(2, 3), _f(2, 3)),
    _case("add", _f(1, 2, 5), _f(1, 2, 5)),
    _case("embedding", _i(6, 2, 3), _f(6, 4)),
    _case("embedding", _i(5, 4, dtype=np.int32), _f(5, 1)),
    _case("learned_positions", _f(2, 3, 4), _f(5, 4), None),
    _case("learned_positions", _f(2, 3, 4), _f(5, 4), np.array([0, 2])),
    _case("learned_positions", _f(2, 3, 1), _f(4, 1), np.array([3, 1])),
    _case("sinusoidal_positions", _f(2, 3, 5), None, context=3),
    _case("sinusoidal_positions", _f(2, 3, 4), np.array([4, 0]), context=8),
    _case("layer_norm", _f(3, 5), _f(5), _f(5), eps=1e-5),
    _case("layer_norm", _f(2, 3, 8) * 3 + 1, _f(8), _f(8), eps=1e-3),
    _case("attention", _f(2, 5, 6), _f(2, 5, 6), _f(2, 5, 6), heads=2, causal=True),
    _case("attention", _f(1, 4, 3), _f(1, 4, 3), _f(1, 4, 3), heads=3, causal=False),
    _case("attention", _f(3, 1, 4), _f(3, 1, 4), _f(3, 1, 4), heads=1, causal=True),
    _case("cache_write", _f(2, 3, 7, 2), _f(2, 1, 6), np.array([4, 0]), np.array([1, 1])),
    _case("cache_write", _f(2, 1, 5, 4), _f(2, 3, 4), np.array([0, 2]), np.array([2, 3])),
    _case("cached_attention", _f(2, 1, 6), _f(2, 3, 7, 2), _f(2, 3, 7, 2), np.array([6, 1]), heads=3),
    _case("cached_attention", _f(1, 3, 4), _f(1, 1, 5, 4), _f(1, 1, 5, 4), np.array([2]), heads=1),
    _case("advance", np.array([0, 3, 9]), np.array([1, 1, 2])),
    _case("advance", np.array([5]), np.array([4])),
    _case("cross_entropy", _f(4, 3), _i(3, 4)),
    _case("cross_entropy", _f(2, 3, 3), _IDS),
    _case("quantize", _f(3, 4) * 9, *_GRID),
    _case("quantize", _f(2, 3, 5), _scale(2, 3, 1), _zero(128, 2, 3, 1)),
    _case("dequantize", _u8(3, 4), *_GRID),
    _case("dequantize", _s8(2, 3), _scale(), None),
    _case("dequantize", _u8(2, 3, 4, 1), _scale(2, 1, 1, 1), _zero(3, 2, 1, 1, 1)),
    _case("row_scale", _f(3, 5), axes=1),
    _case("row_scale", _f(2, 2, 3, 3), axes=3),
    _case("row_zero", _f(3, 5), axes=1),
    _case("row_zero", _f(2, 2, 3), axes=2),
    _case("qlinear", _u8(3, 5), *_GRID, _s8(4, 5), _scale(), None, None, None),
    _case("qlinear", _u8(3, 5), *_GRID, _s8(4, 5), _scale(4), _i(999, 4, low=-999, dtype=np.int32), *_OUT),
    _case("qlinear", _u8(2, 3, 5), _scale(2, 3, 1), _zero(9, 2, 3, 1), _s8(2, 5), _scale(2), _f(2), None, None),
    _case("qlinear", _u8(3, 5), *_GRID, _s8(4, 5), _scale(4), _i(99, 4, dtype=np.int32), None, None, activation="relu"),
    _case(
        "qlinear",
        _u8(2, 3, 5),
        _scale(2, 3, 1),
        _zero(9, 2, 3, 1),
        _s8(2, 5),
        _scale(2),
        _f(2),
        None,
        None,
        activation="gelu",
    ),
    _case(
        "qconv2d",
        _u8(2, 1, 4, 4),
        *_ROWS,
        _s8(2, 1, 3, 3),
        _scale(2),
        _f(2),
        None,
        None,
        stride=2,
        padding=1,
        activation="relu",
    ),
    _case(
        "qconv2d",
        _u8(1, 2, 4, 4),
        *_GRID,
        _s8(2, 2, 2, 3),
        _scale(),
        _BIAS,
        None,
        None,
        stride=1,
        padding=0,
        activation="gelu",
    ),
    _case("qconv2d", _u8(2, 1, 5, 4), *_GRID, _s8(3, 1, 3, 3), _scale(3), None, None, None, stride=1, padding=1),
    _case("qconv2d", _u8(1, 2, 5, 5), *_GRID, _s8(2, 2, 2, 3), _scale(), _BIAS, *_OUT, stride=2, padding=0),
    _case("qconv2d", _u8(2, 1, 4, 4), *_ROWS, _s8(2, 1, 3, 3), _scale(2), _f(2), None, None, stride=2, padding=1),
    _case("qembedding", _i(6, 2, 3), _s8(6, 4), _scale(6)),
    _case("qembedding", _i(5, 4), _s8(5, 3), _scale()),
]
_CODED = (_f(2, 2, 8), _s8(2, 2, 7, 2), _s8(2, 2, 7, 2))
_HALVES = (_f(2, 2, 4), *(_f(2, 2, 7, 2).astype(np.float16) for _ in range(2)))
_WIDE, _LONG = (_f(2, 1, 6), _f(2, 3, 7, 2), _f(2, 3, 7, 2)), (_f(2, 4, 3), _f(2, 1, 9, 3), _f(2, 1, 9, 3))
EXAMPLES += [
    _case("rotary", _f(2, 3, 8), None, width=4, context=5),
    _case("rotary", _f(2, 3, 6), np.array([4, 0]), width=6, context=9),
    _case("rotary", _f(1, 1, 4), np.array([3]), width=2, context=4),
    _case("rotary", _f(2, 3, 4), np.array([90_000, 2]), width=4, context=6),
    _case("rotary", _f(2, 3, 4), np.array([3, 0]), width=4, context=6, reach=4),
    _case("attention", _f(2, 5, 8), _f(2, 5, 4), _f(2, 5, 4), heads=4, causal=True),
    _case("attention", _f(2, 3, 6), _f(2, 3, 2), _f(2, 3, 2), heads=3, causal=False),
    _case("attention", _f(1, 70, 4), _f(1, 70, 2), _f(1, 70, 2), heads=2, causal=True),
    _case("cached_attention", _f(2, 2, 8), _f(2, 2, 7, 2), _f(2, 2, 7, 2), np.array([4, 1]), heads=4),
    _case("head_scale", _f(2, 3, 6), heads=2),
    _case("head_scale", np.zeros((1, 1, 4), np.float32), heads=1),
    # in float16; on a scale for each channel, and for each vector; round behind the sinks
    _case("cache_write", _f(2, 3, 7, 2).astype(np.float16), _f(2, 1, 6) * 9e4, np.array([4, 0]), np.array([1, 1])),
    _case("cache_write", _s8(2, 3, 7, 2), _f(2, 2, 6), np.array([4, 0]), np.array([2, 1]), _scale(3, 2)),
    _case("cache_write", _s8(2, 3, 7, 2), _f(2, 2, 6), np.array([4, 0]), np.array([2, 1]), _scale(2, 2, 3)),
    _case("cache_write", _f(3, 2, 5, 2), _f(3, 1, 4), np.array([5, 11, 3]), np.array([1, 1, 1]), None, sinks=2, window=3),
    _case("cache_write", _f(2, 1, 4, 3), _f(2, 2, 3), np.array([2, 6]), np.array([2, 2]), None, sinks=0, window=4),
    _case("cached_attention", *_CODED, np.array([4, 1]), _scale(2, 2), _scale(2, 2, 7, 1), None, heads=4),
    _case("cached_attention", *_HALVES, np.array([4, 1]), None, None, None, heads=2),
    _case("cached_attention", *_WIDE, np.array([6, 1]), None, None, _f(2, 1, 6), heads=3, sinks=2, window=3),
    _case("cached_attention", *_WIDE, np.array([17, 9]), None, None, _f(2, 1, 6), heads=3, sinks=3, window=4),
    _case("cached_attention", *_LONG, np.array([0, 3]), None, None, None, heads=1, sinks=1, window=2),
]
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=str)


def test_the_table_covers_exactly_the_ops():
    assert {example.op for example in EXAMPLES} == set(OPS)
    assert all(name == op.name for name, op in OPS.items())


def test_ops_without_an_onnx_form_are_the_declared_ones():
    assert {name for name, op in OPS.items() if op.onnx is None} == NO_ONNX


def test_ops_without_gradient_are_the_declared_ones():
    assert {name for name, op in OPS.items() if op.vjp is None} == NO_GRADIENT
    assert {name for name, op in OPS.items() if op.in_place} == {"cache_write"}


@pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))
def test_declared_fields_fit_the_arguments(op):
    names = {name.rstrip("?") for name in op.arguments}
    assert set(op.parameters) <= names
    assert {op.matrix, op.in_place} <= names | {None}
    assert op.matrix is None or op.matrix in op.parameters


def _spec(array, name, batch):
    if array is None:
        return None
    per_row = name in BATCHED or (name == "scale" and array.ndim > 2)
    shape = (batch, *array.shape[1:]) if batch and per_row and array.ndim else array.shape
    return Spec(shape, str(array.dtype))


def _frozen(example):
    """Copies of the arrays, read-only but for the one that the op may overwrite."""
    copies = []
    for name, array in zip(example.names, example.arrays, strict=True):
        copy = None if array is None else array.copy()
        if copy is not None:
            copy.setflags(write=name == OPS[example.op].in_place)
        copies.append(copy)
    return copies


@each_example
@pytest.mark.parametrize("batch", [None, "N"])
def test_infer_is_what_forward_gives(example, batch):
    op = OPS[example.op]
    specs = [_spec(a, name, batch) for name, a in zip(example.names, example.arrays, strict=True)]
    rows = next(a.shape[0] for a in example.arrays if a is not None)
    out = op.forward(*_frozen(example), **example.attributes)
    assert isinstance(out, np.ndarray)
    inferred = op.infer(*specs, **example.attributes)
    assert inferred.bound({"N": rows}) == Spec(out.shape, str(out.dtype))
    assert ("N" in inferred.shape) == (batch == "N" and out.ndim > 0)


@each_example
def test_forward_leaves_its_inputs_alone(example):
    op, arrays = OPS[example.op], _frozen(example)
    op.forward(*arrays, **example.attributes)
    for name, before, after in zip(example.names, example.arrays, arrays, strict=True):
        if before is not None and name != op.in_place:
            np.testing.assert_array_equal(after, before)


def _central(f, arrays, index, cotangent, step=1e-6):
    """d <cotangent, f> / d arrays[index] in float64 by central differences."""
    x = arrays[index]
    gradient = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            ends.append(np.sum(cotangent * f(*arrays[:index], moved, *arrays[index + 1 :])))
        gradient[place] = (ends[0] - ends[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.op not in NO_GRADIENT | STRAIGHT_THROUGH], ids=str)
def test_gradient_is_the_central_difference(example):
    op = OPS[example.op]
    arrays = [a.astype(np.float64) if a is not None and a.dtype == np.float32 else a for a in example.arrays]
    out = op.forward(*arrays, **example.attributes)
    if out.dtype != np.uint8:
        assert out.dtype == np.float64, "an op keeps the dtype of its input"
    cotangent = np.asarray(np.random.default_rng(3).normal(size=out.shape))
    for array in (*arrays, cotangent, out):
        if array is not None:
            array.setflags(write=False)
    gradients = op.vjp(cotangent, out, *arrays, **example.attributes)
    assert len(gradients) == len(arrays)
    for index, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
        if array is None or array.dtype.kind in "i":
            assert gradient is None
        elif array.dtype == np.float64:
            assert gradient.dtype == np.float64
            expected = _central(lambda *a: op.forward(*a, **example.attributes), arrays, index, cotangent)
            np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def _along(scale, ndim):
    return scale.reshape(-1, *[1] * (ndim - 1)) if scale.ndim else scale


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.op in ("qlinear", "qconv2d")], ids=str)
def test_gradient_of_a_quantized_product_is_that_of_its_float_counterpart(example):
    op, arrays = OPS[example.op], _frozen(example)
    x, x_scale, x_zero, weight, w_scale, bias, y_scale, y_zero = arrays
    real_x = (x.astype(np.float64) - x_zero) * x_scale.astype(np.float64)
    real_w = weight * _along(w_scale.astype(np.float64), weight.ndim)
    real_b = bias
    if bias is not None and bias.dtype == np.int32:
        real_b = bias * (x_scale.astype(np.float64) * w_scale)
    counterpart = OPS[example.op[1:]].forward
    real = [real_x, real_w, None if real_b is None else real_b.astype(np.float64)]
    y = counterpart(*real, **example.attributes)
    cotangent = np.random.default_rng(3).normal(size=y.shape)
    inside = np.ones(y.shape, bool)
    if y_scale is not None:
        code = np.rint(y / y_scale) + y_zero
        inside = (code > 0) & (code < 255)
        assert 0 < inside.sum() < inside.size, "the example must saturate, but not everywhere"
    out = op.forward(*arrays, **example.attributes)
    found = op.vjp(cotangent.astype(np.float32), out, *arrays, **example.attributes)
    for index, gradient in zip((0, 1, 2), (found[0], found[3], found[5]), strict=True):
        if real[index] is None:
            assert gradient is None
            continue
        expected = _central(lambda *a: counterpart(*a, **example.attributes), real, index, cotangent * inside, step=1e-3)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)
    assert [found[i] for i in (1, 2, 4, 6, 7)] == [None] * 5


@each_example
def test_the_order_in_memory_does_not_matter(example):
    """Shapes are what counts: conv2d returns its output with the batch last in memory; what follows must not care."""
    op = OPS[example.op]
    usual = [None if a is None else np.array(a) for a in example.arrays]
    turned = [None if a is None else np.array(a, order="F") for a in example.arrays]
    out = op.forward(*usual, **example.attributes).copy()
    found = op.forward(*turned, **example.attributes)
    np.testing.assert_allclose(found, out, rtol=1e-5, atol=1e-6)
    if op.vjp is None:
        return
    cotangent = np.random.default_rng(3).normal(size=out.shape).astype(np.float32)
    expected = op.vjp(cotangent, out, *usual, **example.attributes)
    gradients = op.vjp(np.array(cotangent, order="F"), np.array(out, order="F"), *turned, **example.attributes)
    for one, other in zip(gradients, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_products_can_leave_out_the_gradient_of_their_input():
    assert {name for name, op in OPS.items() if op.skips_input_gradient} == {"linear", "conv2d", "qlinear", "qconv2d"}


@pytest.mark.parametrize("example", [e for e in EXAMPLES if OPS[e.op].skips_input_gradient], ids=str)
def test_leaving_out_the_gradient_of_the_input_changes_no_other(example):
    op, arrays = OPS[example.op], _frozen(example)
    out = op.forward(*arrays, **example.attributes)
    cotangent = np.random.default_rng(3).normal(size=out.shape).astype(np.float32)
    first, *expected = op.vjp(cotangent, out, *arrays, **example.attributes)
    none, *others = op.vjp(cotangent, out, *arrays, **example.attributes, input_gradient=False)
    assert first is not None and none is None
    for one, other in zip(others, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.op in ("quantize", "dequantize")], ids=str)
def test_gradient_of_a_grid_op_is_the_identity_where_it_does_not_saturate(example):
    op, (x, scale, zero) = OPS[example.op], example.arrays
    inside = np.ones(x.shape, bool)
    if example.op == "quantize":
        code = np.rint(x.astype(np.float64) / scale) + zero
        inside = (code > 0) & (code < 255)
    cotangent = _f(*x.shape)
    found = op.vjp(cotangent, op.forward(x, scale, zero), x, scale, zero)
    np.testing.assert_array_equal(found[0], np.where(inside, cotangent, 0))
    assert found[1:] == (None, None)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.op == "qembedding"], ids=str)
def test_gradient_of_a_quantized_table_adds_up_by_token(example):
    tokens, table, _ = example.arrays
    cotangent = _f(*tokens.shape, table.shape[1])
    expected = np.zeros(table.shape)
    for place in np.ndindex(tokens.shape):
        expected[tokens[place]] += cotangent[place]
    found = OPS["qembedding"].vjp(cotangent, OPS["qembedding"].forward(*example.arrays), *example.arrays)
    np.testing.assert_allclose(found[1], expected, rtol=1e-6, atol=1e-6)
    assert (found[0], found[2]) == (None, None)


def _count_macs(example, out):
    """Multiply-accumulates, counted from the meaning of the op."""
    a = dict(zip(example.names, example.arrays, strict=True))
    if example.op in ("linear", "qlinear"):
        return math.prod(a["x"].shape[:-1]) * a["weight"].shape[0] * a["x"].shape[-1]
    if example.op in ("conv2d", "qconv2d"):  # one filter's products at each place of each output map
        return sum(a["weight"][filter_].size for _, filter_, _, _ in np.ndindex(out.shape))
    if example.op == "attention":  # each of T places: T scores of D products, then T vectors of D
        n, t, d = a["q"].shape
        return sum(2 * d for _ in range(n) for _ in range(t) for _ in range(t))
    if example.op == "cached_attention":
        n, t, d = a["q"].shape
        return 2 * n * t * a["keys"].shape[2] * d
    return 0


def _count_bytes(example, out):
    a = dict(zip(example.names, example.arrays, strict=True))
    touched = {name: array.nbytes for name, array in a.items() if array is not None}
    if example.op in ("embedding", "qembedding"):  # only the rows looked up are read
        touched["table"] = a["tokens"].size * a["table"][0].nbytes
        if "scale" in a and a["scale"].ndim:
            touched["scale"] = a["tokens"].size * a["scale"].itemsize
    return out.nbytes + sum(touched.values())


@each_example
def test_cost_is_an_independent_count(example):
    op = OPS[example.op]
    out = op.forward(*_frozen(example), **example.attributes)
    specs = [_spec(a, name, None) for name, a in zip(example.names, example.arrays, strict=True)]
    cost = op.cost(Spec(out.shape, str(out.dtype)), *specs, **example.attributes)
    assert (cost.macs, cost.bytes) == (_count_macs(example, out), _count_bytes(example, out))


def _single(example, batch):
    """A graph of the one op: what carries the batch is an input, the rest are weights."""
    inputs, weights, names = {}, {}, []
    for name, array in zip(example.names, example.arrays, strict=True):
        if array is None:
            names.append("")
        elif array.ndim and (name in BATCHED or (name == "scale" and array.ndim > 2)):
            inputs[name] = _spec(array, name, batch)
            names.append(name)
        else:
            weights[name] = Weight(array)
            names.append(f"{name}:codes" if array.dtype.kind in "iu" else name)
    return Graph("single", (Node(example.op, tuple(names), "value", example.attributes),), weights, inputs, ("value",))


@each_example
@pytest.mark.parametrize("batch", [None, "N"])
def test_onnx_form_computes_the_same(example, batch):
    """In onnxruntime: codes, and whatever is made of integers, bit for bit; floats up to the order of a sum."""
    graph = _single(example, batch)
    given = dict(zip(example.names, example.arrays, strict=True))
    expected = OPS[example.op].forward(*_frozen(example), **example.attributes)
    found = ONNX.prepare(graph)(*(given[name] for name in graph.inputs))
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, expected)


@each_example
def test_onnx_form_is_data_that_is_whole(example):
    """Every name is an argument that is there, or made before it is read; the last operator makes the value."""
    specs = [_spec(a, name, None) for name, a in zip(example.names, example.arrays, strict=True)]
    form = OPS[example.op].onnx(*specs, **example.attributes)
    known = {name for name, array in zip(example.names, example.arrays, strict=True) if array is not None}
    for step in form:
        assert isinstance(step, OnnxNode)
        for source in step.inputs:
            assert isinstance(source, np.ndarray) or source.removesuffix(".T") in known
        assert step.output not in known
        known.add(step.output)
        assert all(isinstance(value, int | float | str | list) for value in step.attributes.values())
    assert form[-1].output == OUT
