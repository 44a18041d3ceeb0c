"""What a call may be given, and that neither threads nor neighbours change a bit of its result."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from compiled_cases import model, runtime

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import GraphBuilder
from mlperf_opt.runtimes import NUMPY

NETWORKS = [("mlp", "none"), ("cnn", "static"), ("cnn", "dynamic"), ("mlp", "fp16"), ("transformer", "none")]
NETWORKS += [("transformer", "static"), ("lenet5", "static")]
each_network = pytest.mark.parametrize("name, before", NETWORKS)


def _batch(inputs, rows):
    return np.tile(inputs, (-(-rows // len(inputs)), *[1] * (inputs.ndim - 1)))[:rows]


@each_network
def test_threads_do_not_change_a_bit(monkeypatch, name, before):
    monkeypatch.setattr("mlperf_opt.runtimes.compiled.executable._WORTH_THREADS", 0)  # also where it doesn't pay
    graph, inputs = model(name, before)
    executables = {threads: runtime(threads).prepare(graph) for threads in (1, 2, 3)}
    for rows in (1, 2, 15, 16, 17, 96, 97, 288, 289, 700):
        batch = _batch(inputs, rows)
        expected = executables[1](batch)
        for threads in (2, 3):
            np.testing.assert_array_equal(executables[threads](batch), expected)


@each_network
def test_a_row_does_not_depend_on_its_neighbours(name, before):
    """Up to rounding for floats, whose products are summed in another order for one row than for many."""
    graph, inputs = model(name, before)
    executable = runtime().prepare(graph)
    batch = _batch(inputs, 301)
    together = executable(batch)
    for row in (0, 1, 95, 96, 287, 288, 300):
        found = executable(batch[row : row + 1])[0]
        np.testing.assert_allclose(found, together[row], rtol=1e-4, atol=1e-4 if name != "transformer" else 0.05)
    assert np.array_equal(executable(batch), together)


@each_network
def test_arrays_of_any_layout(name, before):
    graph, inputs = model(name, before)
    executable = runtime().prepare(graph)
    batch = _batch(inputs, 20)
    expected = executable(batch)
    frozen = batch.copy()
    frozen.setflags(write=False)
    wide = np.zeros((40, *batch.shape[1:]), batch.dtype)
    wide[::2] = batch
    backwards = batch[::-1].copy()[::-1]
    fortran = np.asfortranarray(batch)
    shifted = np.zeros(batch.nbytes + 1, np.uint8)[1:].view(batch.dtype).reshape(batch.shape)
    shifted[:] = batch
    for given in (frozen, wide[::2], backwards, fortran, shifted):
        np.testing.assert_array_equal(executable(given), expected)
        np.testing.assert_array_equal(given, batch)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("op, inputs", [("add", 2), ("softmax", 1)])
def test_a_graph_of_other_floats_is_refused_not_taken_for_float32(dtype, op, inputs):
    build = GraphBuilder("other")
    x = build.input("x", ("N", 64), dtype)
    graph = build.finish(build.node(op, "y", *[x] * inputs))
    assert NUMPY.prepare(graph)(np.ones((1, 64), dtype)).dtype == dtype
    with pytest.raises(GraphError, match=f"can't run node 'y' .{op}.: 'x' is {dtype}; use runtime=numpy"):
        runtime().prepare(graph)


@pytest.mark.parametrize("name, wrong", [("mlp", np.float64), ("cnn", np.float16), ("transformer", np.int32)])
def test_another_dtype_or_shape_is_refused(name, wrong):
    graph, inputs = model(name, "none")
    executable = runtime().prepare(graph)
    for given in (inputs[:2].astype(wrong), inputs[0], inputs[:2, None], inputs[:2].astype(">f4")):
        with pytest.raises(GraphError, match=rf"^{name} takes .*got"):
            executable(given)
        with pytest.raises(GraphError, match=rf"^{name} takes .*got"):
            executable.observe(lambda *_: None, given)


def test_executables_in_threads_of_their_own():
    """Two networks at once, each in a thread: kernels hold no lock and share no memory."""
    jobs = [model(name, before) for name, before in NETWORKS for _ in range(2)]
    alone = [runtime().prepare(graph)(inputs[:40]) for graph, inputs in jobs]

    def repeat(job):
        graph, inputs = job
        executable = runtime().prepare(graph)
        return [executable(inputs[:40]) for _ in range(30)]

    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(repeat, jobs), alone, strict=True):
            for output in found:
                np.testing.assert_array_equal(output, expected)


_GUARDED = """
import ctypes, mmap, sys
import numpy as np
sys.path.insert(0, {folder!r})
from compiled_cases import BEFORE, model, runtime
from mlperf_opt.runtimes.compiled import executable as module

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
keep = []

def guarded(shape, dtype=np.float64):
    '''An array that ends where readable memory ends.'''
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    area = mmap.mmap(-1, room + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert libc.mprotect(start + room, mmap.PAGESIZE, 0) == 0
    keep.append(area)
    return np.frombuffer(area, np.uint8)[room - size : room].view(dtype).reshape(shape)

class Guarded:
    def __getattr__(self, name):
        return guarded if name == "empty" else getattr(np, name)

module.np = Guarded()
for name in ("mlp", "cnn", "transformer", "lenet5"):
    for before in ("none", "fuse", "static", "dynamic", "fp16", "weight_only"):
        graph, inputs = model(name, before)
        executable = runtime().prepare(graph)
        for rows in (1, 3, 20):
            batch = guarded((rows, *inputs.shape[1:]), inputs.dtype)
            batch[:] = inputs[:rows]
            out = executable(batch)
            assert np.isfinite(out).all()
print("unharmed")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")
def test_nothing_is_touched_beyond_a_callers_arrays():
    """Inputs and outputs end at a page that may not be touched: a byte further and the process is gone."""
    code = _GUARDED.format(folder=str(Path(__file__).parent))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0 and result.stdout == "unharmed\n", (result.returncode, result.stderr[-2000:])
