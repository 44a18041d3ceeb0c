"""Every shape rule refuses what its forward could not do, with the fact that is wrong."""

import pytest

from mlperf_opt.errors import GraphError
from mlperf_opt.ops import OPS, Spec


def _f(*shape):
    return Spec(shape, "float32")


def _u8(*shape):
    return Spec(shape, "uint8")


def _s8(*shape):
    return Spec(shape, "int8")


def _i64(*shape):
    return Spec(shape, "int64")


CONV, POOL, HEADS = {"stride": 1, "padding": 0}, {"size": 2, "stride": 2}, {"heads": 2, "causal": True}
GRID, W = (_f(), _u8()), _s8(4, 5)
CACHE = _f("N", 2, "L", 3)
CODED = _s8("N", 2, "L", 3)
BROKEN = [
    ("linear", [_f("N", 5), _f(4, 6), None], {}, "last axis of x"),
    ("linear", [_f("N", 5), _f(4, 5, 1), None], {}, r"weight must be \(M, K\)"),
    ("linear", [_f("N", 5), _f(4, 5), _f(1)], {}, r"bias float32\[1\] must be \(4,\)"),
    ("linear", [_f(), _f(4, 5), None], {}, "last axis of x"),
    ("linear", [_u8("N", 5), _f(4, 5), None], {}, "x must be floats"),
    ("linear", [_f("N", 5), _s8(4, 5), None], {}, "weight must be floats"),
    ("conv2d", [_f("N", 5, 5), _f(1, 1, 3, 3), None], CONV, r"x must be \(N, C, H, W\)"),
    ("conv2d", [_f("N", 2, 5, 5), _f(1, 1, 3, 3), None], CONV, "channels of x"),
    ("conv2d", [_f("N", 1, 2, 5), _f(1, 1, 3, 3), None], CONV, "a kernel of 3x3 does not fit"),
    ("conv2d", [_f("N", 1, 5, 5), _f(2, 1, 3, 3), _f(3)], CONV, "bias"),
    ("conv2d", [_f("N", 1, "H", 5), _f(1, 1, 3, 3), None], CONV, "only the batch axis"),
    ("conv2d", [_u8("N", 1, 5, 5), _f(1, 1, 3, 3), None], CONV, "x must be floats"),
    *(
        (
            "conv2d",
            [_f("N", 1, 5, 5), _f(1, 1, 3, 3), None],
            {"stride": stride, "padding": padding},
            "must be a whole number",
        )
        for stride, padding in ((0, 0), (1.0, 0), (True, 0), (1, -1), (1, 0.5), ("1", 0))
    ),
    ("max_pool2d", [_f("N", 5, 5)], POOL, r"x must be \(N, C, H, W\)"),
    ("max_pool2d", [_f("N", 1, 1, 5)], POOL, "a window of 2 does not fit"),
    ("max_pool2d", [_f("N", 1, "H", 5)], POOL, "must be numbers"),
    ("max_pool2d", [_f("N", 1, 5, 5)], {"size": 2, "stride": 0}, "whole numbers"),
    ("avg_pool2d", [_f("N", 1, 5, 5)], {"size": 2.5, "stride": 1}, "whole numbers"),
    ("avg_pool2d", [_u8("N", 1, 5, 5)], POOL, "x must be floats"),
    ("relu", [_u8("N", 4)], {}, "must be floats"),
    ("gelu", [_i64("N", 4)], {}, "must be floats"),
    ("softmax", [_f()], {}, "must have an axis"),
    ("softmax", [_i64("N", 4)], {}, "must be floats"),
    ("flatten", [_f("N")], {}, "batch axis and another"),
    ("flatten", [_f("N", "T", 3)], {}, "only the batch axis"),
    ("add", [_f("N", 3), _f("N", 1)], {}, "differ"),
    ("add", [_u8("N", 3), _u8("N", 3)], {}, "must be floats"),
    ("embedding", [_f("N", "T"), _f(5, 2)], {}, "tokens must be integers"),
    ("embedding", [_i64("N", "T"), _f(5)], {}, r"table must be \(V, D\)"),
    ("embedding", [_i64("N", "T"), _s8(5, 2)], {}, "table must be floats"),
    ("learned_positions", [_f("N", "T", 4), _f(5, 3), None], {}, "does not fit"),
    ("learned_positions", [_f("N", 4), _f(5, 4), None], {}, r"x must be \(N, T, D\)"),
    ("learned_positions", [_f("N", "T", 4), _f(5, 4), _f("N")], {}, r"int64\[N\]"),
    ("learned_positions", [_f("N", "T", 4), _f(5, 4), _i64(1)], {}, r"int64\[N\]"),
    ("sinusoidal_positions", [_f("N", "T", 4), None], {"context": 0}, "context=0"),
    ("layer_norm", [_f("N", 4), _f(4), _f(3)], {"eps": 1e-5}, "must fit"),
    ("layer_norm", [_f("N", 4), _f(4), _f(4)], {"eps": 0.0}, "eps=0.0"),
    ("layer_norm", [_f("N", 4), _f(4), _f(4)], {"eps": float("nan")}, "eps=nan"),
    ("layer_norm", [_f(), _f(), _f()], {"eps": 1e-5}, "must have an axis"),
    ("attention", [_f("N", "T", 4), _f("N", "T", 4), _f("N", 3, 4)], HEADS, "k and v alike"),
    ("attention", [_f("N", "T", 8), _f(1, "T", 8), _f(1, "T", 8)], HEADS, "k and v alike"),
    *[
        (
            "attention",
            [_f("N", "T", 8), *[_f("N", "T", wide)] * 2],
            {"heads": 4, "causal": True},
            "as many as divide heads=4",
        )
        for wide in (0, 1, 3, 6, 16, "D")
    ],
    ("rotary", [_f("N", "T", 8), None], {"width": 3, "context": 4}, "an even number"),
    ("rotary", [_f("N", "T", 8), None], {"width": 6, "context": 4}, "must divide the last axis"),
    ("rotary", [_f("N", "T", 8), None], {"width": 4, "context": 0}, "context=0"),
    ("rotary", [_f("N", 8), None], {"width": 4, "context": 4}, r"x must be \(N, T, D\)"),
    ("rotary", [_f("N", "T", 8), _i64(1)], {"width": 4, "context": 4}, r"int64\[N\]"),
    ("attention", [_f("N", "T", 5)] * 3, HEADS, "heads=2 must divide"),
    ("attention", [_f("N", "T", 4)] * 3, {"heads": 0, "causal": True}, "heads=0"),
    ("attention", [_f("N", "T", 4)] * 3, {"heads": 2.0, "causal": True}, "heads=2.0"),
    ("attention", [_f("N", "T", "D")] * 3, HEADS, "must divide the width D"),
    ("cache_write", [_f("N", 2, 3), _f("N", "T", 6), _i64("N"), _i64("N")], {}, "cache must be"),
    ("cache_write", [CACHE, _f("N", "T", 5), _i64("N"), _i64("N")], {}, "differ in batch or width"),
    ("cache_write", [CACHE, _f(1, "T", 6), _i64("N"), _i64("N")], {}, "differ in batch or width"),
    ("cache_write", [CACHE, _f("N", "T", 6), _i64("N"), _f("N")], {}, "must be int64"),
    ("cache_write", [CODED, _f("N", "T", 6), _i64("N"), _i64("N")], {}, "goes with a scale into int8"),
    ("cache_write", [CACHE, _f("N", "T", 6), _i64("N"), _i64("N"), _f(2, 3)], {}, "goes with a scale into int8"),
    ("cache_write", [CODED, _f("N", "T", 6), _i64("N"), _i64("N"), _f(3, 2)], {}, "one for each channel"),
    ("cache_write", [CODED, _f("N", "T", 6), _i64("N"), _i64("N"), _f("N", "T", 6)], {}, "or for each vector"),
    ("cache_write", [CACHE, _f("N", "T", 6), _i64("N"), _i64("N")], {"sinks": 2}, "a window of at least 1"),
    ("cache_write", [CACHE, _f("N", "T", 6), _i64("N"), _i64("N")], {"sinks": -1, "window": 3}, "sinks=-1"),
    ("cache_write", [CACHE, _u8("N", "T", 6), _i64("N"), _i64("N")], {}, "new must be floats"),
    ("head_scale", [_f("N", 6)], {"heads": 2}, r"x must be \(N, T, D\)"),
    ("head_scale", [_f("N", "T", 6)], {"heads": 4}, "heads=4 must divide"),
    ("cached_attention", [_f("N", "T", 6), CODED, CODED, _i64("N")], {"heads": 2}, "int8 keys have scales"),
    ("cached_attention", [_f("N", "T", 6), CODED, CODED, _i64("N"), _f(2, 3)], {"heads": 2}, "scales must be"),
    ("cached_attention", [_f("N", "T", 6), CACHE, CACHE, _i64("N"), None, None, _f("N", "T", 3)], {"heads": 2}, "q_sinks"),
    ("cached_attention", [_f("N", "T", 6), CACHE, CACHE, _i64("N")], {"heads": 2, "window": -1}, "window=-1"),
    ("rotary", [_f("N", "T", 8), None], {"width": 4, "context": 4, "reach": -1}, "reach=-1"),
    ("cache_write", [_f("N", "h", "L", 3), _f("N", "T", 6), _i64("N"), _i64("N")], {}, "must be numbers"),
    ("cached_attention", [_f("N", "T", 6), CACHE, CACHE, _i64("N")], {"heads": 3}, "differ in batch or width of a head"),
    ("cached_attention", [_f("N", "T", 8), CACHE, CACHE, _i64("N")], {"heads": 2}, "differ in batch or width of a head"),
    ("cached_attention", [_f("N", "T", 9), CACHE, CACHE, _i64("N")], {"heads": 3}, "must divide heads=3"),
    ("cached_attention", [_f("N", "T", 6), CACHE, _f("N", 2, 9, 3), _i64("N")], {"heads": 2}, "must be"),
    ("cached_attention", [_f("N", "T", 6), CACHE, CACHE, _i64(1)], {"heads": 2}, "must be int64"),
    ("advance", [_i64("N"), _i64(1)], {}, "must be int64"),
    ("advance", [_f("N"), _f("N")], {}, "must be int64"),
    ("cross_entropy", [_f("N", 3), _i64("N", 3)], {}, "leading axes"),
    ("cross_entropy", [_f("N", 3), _f("N")], {}, "must be class ids"),
    ("quantize", [_f("N", 3), _f(), _s8()], {}, "zero point uint8"),
    ("quantize", [_f("N", 3), _f(3), _u8()], {}, "does not fit"),
    ("quantize", [_f(2, 1), _f(3, 1), _u8()], {}, "does not fit"),
    ("quantize", [_u8("N", 3), *GRID], {}, "x must be float32"),
    ("dequantize", [_f("N", 3), *GRID], {}, "codes must be uint8 or int8"),
    ("dequantize", [_s8(4, 3), _f(4), None], {}, "does not fit"),
    ("row_scale", [_f("N", 3)], {"axes": 2}, "axes=2 must leave"),
    ("row_scale", [_f("N", 3)], {"axes": 0}, "axes=0"),
    ("row_zero", [_u8("N", 3)], {"axes": 1}, "must be floats"),
    ("qlinear", [_f("N", 5), *GRID, W, _f(), None, None, None], {}, "x must be uint8"),
    ("qlinear", [_u8("N", 5), *GRID, _f(4, 5), _f(), None, None, None], {}, "weight must be int8"),
    ("qlinear", [_u8("N", 6), *GRID, W, _f(), None, None, None], {}, "do not fit"),
    ("qlinear", [_u8("N", 5), *GRID, W, _f(5), None, None, None], {}, "weight scale"),
    ("qlinear", [_u8("N", 5), _f(5), _u8(), W, _f(), None, None, None], {}, "does not fit"),
    ("qlinear", [_u8("N", 5), *GRID, W, _f(), _f(1), None, None], {}, "bias must be"),
    ("qlinear", [_u8("N", 5), *GRID, W, _f(), _f(4), _f(), _u8()], {}, "bias must be int32"),
    ("qlinear", [_u8("N", 5), *GRID, W, _f(), None, _f(), None], {}, "y_scale and y_zero go together"),
    ("qlinear", [_u8("N", 5), *GRID, W, _f(), None, None, _u8()], {}, "y_scale and y_zero go together"),
    ("qlinear", [_u8("N", 5), *GRID, W, _f(), None, _f(4), _u8()], {}, "must be one number"),
    ("qlinear", [_u8("N", 10**5), *GRID, _s8(1, 10**5), _f(), None, None, None], {}, "may overflow an int32"),
    ("qconv2d", [_u8("N", 1, 2, 2), *GRID, _s8(1, 1, 3, 3), _f(), None, None, None], CONV, "does not fit"),
    (
        "qconv2d",
        [_u8("N", 2, 5, 5), _f("N", 2, 1, 1), _u8(), _s8(1, 2, 3, 3), _f(), None, None, None],
        CONV,
        "one for all or",
    ),
    ("qembedding", [_i64("N"), _f(5, 2), _f()], {}, "table must be int8"),
    ("qembedding", [_i64("N"), _s8(5, 2), _f(2)], {}, "scale"),
]


@pytest.mark.parametrize("op, specs, attributes, text", BROKEN)
def test_a_wrong_call_is_refused(op, specs, attributes, text):
    with pytest.raises(GraphError, match=text):
        OPS[op].infer(*specs, **attributes)


def test_every_op_that_can_be_wrong_has_a_case():
    assert {op for op, *_ in BROKEN} == set(OPS)


def test_a_size_with_a_named_dimension_is_refused():
    with pytest.raises(GraphError, match=r"float32\[N,3\] is not known"):
        _ = _f("N", 3).size
    assert (_f("N", 3).bound({"N": 2}).size, _f("N", 3).bound({"N": 2}).nbytes) == (6, 24)
