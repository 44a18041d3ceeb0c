"""linear, conv2d, pools, activations, layer_norm, cross_entropy against naive float64 forms."""

import math

import numpy as np
import op_oracles as oracle
import pytest

from mlperf_opt.errors import GraphError
from mlperf_opt.ops import OPS
from mlperf_opt.ops.loss import log_softmax


def _f(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape, outputs", [((5,), 3), ((4, 1), 2), ((2, 3, 7), 1), ((1, 64), 10), ((1, 1, 6), 4)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_is_a_sum_of_products(rng, shape, outputs, with_bias):
    x, weight = _f(rng, *shape), _f(rng, outputs, shape[-1])
    bias = _f(rng, outputs) if with_bias else None
    np.testing.assert_allclose(OPS["linear"].forward(x, weight, bias), oracle.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 4), (1, 0, 4), (5, 0), (1, 0)])
def test_linear_of_nothing(shape):
    """No rows give no rows; rows of no values are the bias."""
    bias = np.array([1, 2, 3], np.float32)
    found = OPS["linear"].forward(np.zeros(shape, np.float32), np.ones((3, shape[-1]), np.float32), bias)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.broadcast_to(bias, (*shape[:-1], 3)))


@pytest.mark.parametrize("op, others", [("linear", [(6, 9), (6,)]), ("layer_norm", [(9,), (9,)])])
def test_a_row_alone_is_the_row_among_others(rng, op, others):
    """A decode step goes another way than a prefill; it must not matter which."""
    x, parts = _f(rng, 4, 9), [_f(rng, *shape) for shape in others]
    settings = {"eps": 1e-5} if op == "layer_norm" else {}
    together = OPS[op].forward(x, *parts, **settings)
    for axes in ((9,), (1, 9), (1, 1, 9)):
        alone = [OPS[op].forward(row.reshape(axes), *parts, **settings) for row in x]
        assert {row.shape[:-1] for row in alone} == {axes[:-1]}
        np.testing.assert_allclose([row.reshape(-1) for row in alone], together, rtol=1e-5, atol=1e-6)


CONVOLUTIONS = [
    ((2, 1, 8, 8), (4, 1, 3, 3), 1, 1),
    ((1, 3, 5, 7), (2, 3, 3, 2), 1, 0),
    ((2, 2, 6, 5), (3, 2, 2, 3), 2, 1),
    ((1, 1, 3, 3), (1, 1, 3, 3), 1, 0),
    ((1, 2, 4, 4), (2, 2, 1, 1), 3, 0),
    ((1, 1, 2, 2), (1, 1, 4, 4), 2, 2),
]


@pytest.mark.parametrize("x_shape, w_shape, stride, padding", CONVOLUTIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_conv2d_is_the_loop_over_places(rng, x_shape, w_shape, stride, padding, with_bias):
    x, weight = _f(rng, *x_shape), _f(rng, *w_shape)
    bias = _f(rng, w_shape[0]) if with_bias else None
    expected = oracle.conv2d(x, weight, bias, stride, padding).astype(float)
    found = OPS["conv2d"].forward(x, weight, bias, stride=stride, padding=padding)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape, size, stride", [((2, 3, 4, 4), 2, 2), ((1, 1, 5, 7), 2, 2), ((1, 2, 6, 5), 3, 1), ((1, 1, 3, 3), 3, 5)]
)
@pytest.mark.parametrize("op, reduce", [("max_pool2d", max), ("avg_pool2d", lambda window: sum(window) / len(window))])
def test_pools_reduce_each_whole_window(rng, shape, size, stride, op, reduce):
    x = _f(rng, *shape)
    expected = oracle.pool2d(x, size, stride, reduce)
    np.testing.assert_allclose(OPS[op].forward(x, size=size, stride=stride), expected, rtol=1e-6, atol=1e-7)


def test_of_equal_maxima_one_takes_the_whole_gradient():
    x = np.zeros((1, 1, 2, 2), np.float32)
    op = OPS["max_pool2d"]
    (gradient,) = op.vjp(np.full((1, 1, 1, 1), 3, np.float32), op.forward(x, size=2, stride=2), x, size=2, stride=2)
    np.testing.assert_array_equal(gradient, [[[[3, 0], [0, 0]]]])


def test_relu_and_its_gradient_at_the_corner():
    x = np.array([-2, -0.0, 0, 1e-30, 5], np.float32)
    out = OPS["relu"].forward(x)
    np.testing.assert_array_equal(out, np.array([0, 0, 0, 1e-30, 5], np.float32))
    np.testing.assert_array_equal(OPS["relu"].vjp(np.ones(5, np.float32), out, x)[0], [0, 0, 0, 1, 1])


@pytest.mark.parametrize("value", [-100.0, -3.0, -0.7, -1e-3, 0.0, 1e-3, 0.5, 1.7, 10.0, 1e4, -1e4])
def test_gelu_is_the_tanh_form_of_the_paper(value):
    cubic = value + 0.044715 * value**3
    expected = 0.5 * value * (1 + math.tanh(math.sqrt(2 / math.pi) * cubic))
    found = OPS["gelu"].forward(np.array([value], np.float32))
    np.testing.assert_allclose(found, [expected], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "row", [[0.0], [1.0, 2.0, 3.0], [1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4 + 1, 1e4 - 1], [3e38, -3e38]]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_is_stable(row, dtype):
    if max(row) - min(row) > 3.4e38 and dtype is np.float32:
        row = [value / 2 for value in row]
    found = OPS["softmax"].forward(np.array([row], dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found[0], oracle.softmax(row), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    "shape, offset, spread", [((3, 8), 0, 1), ((2, 3, 5), 100, 3), ((4, 1), 2, 1), ((2, 7), 0, 1e-4), ((1, 1, 5), 100, 3)]
)
def test_layer_norm_against_float64(rng, shape, offset, spread):
    x = (_f(rng, *shape) * np.float32(spread) + np.float32(offset)).astype(np.float32)
    gamma, beta = _f(rng, shape[-1]), _f(rng, shape[-1])
    wide = x.astype(np.float64)
    variance = ((wide - wide.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-5) * gamma + beta
    np.testing.assert_allclose(OPS["layer_norm"].forward(x, gamma, beta, eps=1e-5), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("value", [0.0, 0.25, -7.0])
def test_layer_norm_of_a_constant_row_is_beta(value, rows):
    beta = np.array([1, -2, 3], np.float32)
    found = OPS["layer_norm"].forward(np.full((rows, 3), value, np.float32), np.ones(3, np.float32), beta, eps=1e-5)
    np.testing.assert_allclose(found, [beta] * rows, atol=1e-4)


def test_layer_norm_of_a_constant_row_divides_by_the_smallest_eps():
    """1e-50 is 0 in float32, the variance too."""
    beta = np.array([1, -2, 3], np.float32)
    found = OPS["layer_norm"].forward(np.full((1, 3), 4, np.float32), np.ones(3, np.float32), beta, eps=1e-50)
    np.testing.assert_array_equal(found, [beta])


LOGITS = [[1.0, 2.0, 3.0], [1e4, -1e4, 0.0], [-1e4, -1e4, -1e4 + 1], [1e4, 1e4, 1e4]]


def _minus_log_p(row, target):
    top = max(row)
    return top + math.log(math.fsum(math.exp(value - top) for value in row)) - row[target]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("targets", [[0, 1, 2, 0], [2, 0, 0, 1], [-1, 0, -1, 2]])
def test_cross_entropy_is_stable_and_skips_ignored_targets(dtype, targets):
    terms = [_minus_log_p(row, t) for row, t in zip(LOGITS, targets, strict=True) if t != -1]
    found = OPS["cross_entropy"].forward(np.array(LOGITS, dtype), np.array(targets))
    assert found.shape == () and found.dtype == dtype
    np.testing.assert_allclose(found, math.fsum(terms) / len(terms), rtol=1e-6)


def test_cross_entropy_gradient_is_probability_minus_one_hot_over_the_count():
    logits, targets = np.array(LOGITS), np.array([0, -1, 2, 1])
    op = OPS["cross_entropy"]
    gradient, none = op.vjp(np.float64(2), op.forward(logits, targets), logits, targets)
    expected = np.array([oracle.softmax(row) for row in LOGITS])
    for row, target in enumerate(targets):
        expected[row, target] -= 1
    expected[1] = 0
    np.testing.assert_allclose(gradient, expected * 2 / 3, atol=1e-12)
    assert none is None


def test_log_softmax_is_minus_log_sum_exp():
    expected = [[-_minus_log_p(row, t) for t in range(3)] for row in LOGITS]
    np.testing.assert_allclose(log_softmax(np.array(LOGITS)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "targets, text", [([3, 0], r"0\.\.2, got 0\.\.3"), ([-2, 0], r"got -2\.\.0"), ([-1, -1], "no target counts")]
)
def test_cross_entropy_refuses_targets(targets, text):
    with pytest.raises(GraphError, match=text):
        OPS["cross_entropy"].forward(np.zeros((2, 3), np.float32), np.array(targets))


def test_flatten_keeps_the_batch_and_the_order():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(OPS["flatten"].forward(x), [list(range(12)), list(range(12, 24))])
