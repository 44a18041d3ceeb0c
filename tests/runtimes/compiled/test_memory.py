"""Kernels read the caller's array and nothing behind it: the arrays here end where memory does."""

import ctypes
import mmap
import platform

import numpy as np
import pytest
from compiled_cases import check_same, runtime, scalar

from mlperf_opt.graph import GraphBuilder
from mlperf_opt.runtimes import NUMPY

GRID = {"x_scale": scalar(0.5), "x_zero": scalar(3, np.uint8)}
ROW, IMAGE = ("N", 10), ("N", 1, 6, 6)
TIMED = ("N", "T", 12)
FIRST = {  # a network's first node, which reads its input
    "relu": (ROW, {}),
    "gelu": (ROW, {}),
    "softmax": (ROW, {}),
    "layer_norm": (ROW, {"gamma": np.ones(10, np.float32), "beta": np.zeros(10, np.float32), "eps": 1e-5}),
    "flatten": (("N", 1, 3, 3), {}),
    "max_pool2d": (IMAGE, {"size": 2, "stride": 2}),
    "avg_pool2d": (IMAGE, {"size": 2, "stride": 2}),
    "linear": (ROW, {"weight": np.ones((5, 10), np.float32)}),
    "conv2d": (IMAGE, {"weight": np.ones((5, 1, 3, 3), np.float32), "stride": 1, "padding": 0}),
    "qlinear": (ROW, {**GRID, "weight": np.ones((5, 10), np.int8), "w_scale": scalar(1)}),
    "learned_positions": (TIMED, {"table": np.ones((8, 12), np.float32)}),
}


def at_the_end_of_memory(array):
    """A copy whose last byte is followed by a page that can't be read: who does dies there."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + size), page, 0) == 0
    copy = np.ndarray(array.shape, array.dtype, memory, offset=size - array.nbytes)
    copy[...] = array
    return copy


def graph_of(op):
    shape, settings = FIRST[op]
    build = GraphBuilder(op)
    x = build.input("x", shape, "uint8" if op == "qlinear" else "float32")
    return build.finish(build.node(op, "y", x, **settings))


@pytest.mark.skipif(platform.system() != "Linux", reason="protects a page by mprotect")
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("op", FIRST)
def test_nothing_behind_the_input_is_read(op, rows, rng):
    graph = graph_of(op)
    spec = graph.inputs["x"]
    shape = [{"N": rows, "T": 3}.get(d, d) for d in spec.shape]
    x = (rng.random(shape) * 9).astype(spec.dtype)
    check_same(runtime().prepare(graph)(at_the_end_of_memory(x)), NUMPY.prepare(graph)(x), exact=False, what=op)


@pytest.mark.skipif(platform.system() != "Linux", reason="protects a page by mprotect")
def test_two_inputs_of_a_sum_are_the_callers_array(rng):
    build = GraphBuilder("sum")
    x = build.input("x", ROW, "float32")
    graph = build.finish(build.node("add", "y", x, x))
    array = rng.random((3, 10)).astype(np.float32)
    np.testing.assert_array_equal(runtime().prepare(graph)(at_the_end_of_memory(array)), array + array)
