"""The shared stream of sparse integers: every bit comes back, on every machine, and nothing is believed of a stream."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from artifact_graphs import lenet, lenet_conv, quantized_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlperf_opt.artifacts import context, encodings, entropy, load_graph, model_file, save_graph
from mlperf_opt.artifacts.context import ContextDecoder, ContextEncoder
from mlperf_opt.errors import ArtifactError
from mlperf_opt.graph import Affine, Codebook, GraphBuilder, Weight, arrays, graph_hash, verify
from mlperf_opt.kernels.binary_coder import tables

DTYPES = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]


def stream_of(*arrays):
    encoder = ContextEncoder()
    for array in arrays:
        trial = encoder.offer(array)
        assert trial is not None
        encoder.accept(trial)
    return encoder.finish()


def round_trip(*arrays):
    stream = stream_of(*arrays)
    decoder = ContextDecoder(stream)
    for array in arrays:
        back = decoder.decode(array.shape, array.dtype)
        assert (back.shape, back.dtype, back.tobytes()) == (array.shape, array.dtype, array.tobytes())
    decoder.finish()
    return stream


def sparse_arrays():
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=9)
    spread = st.sampled_from([1, 2, 15, 100, 2**31 - 1])

    def of(dtype, most):
        limits = np.iinfo(dtype)
        numbers = st.integers(max(limits.min, -most), min(limits.max, most))
        return hnp.arrays(dtype, shapes, elements=numbers, fill=st.just(np.dtype(dtype).type(0)))

    return st.builds(of, st.sampled_from(DTYPES), spread).flatmap(lambda strategy: strategy)


@settings(max_examples=150, deadline=None)
@given(st.lists(sparse_arrays(), max_size=4))
def test_every_bit_comes_back(arrays):
    encoder, taken = ContextEncoder(), []
    for array in arrays:
        trial = encoder.offer(array)
        if trial is not None:
            encoder.accept(trial)
            taken.append(array)
    decoder = ContextDecoder(encoder.finish())
    for array in taken:
        back = decoder.decode(array.shape, array.dtype)
        assert (back.shape, back.dtype, back.tobytes()) == (array.shape, array.dtype, array.tobytes())
    decoder.finish()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((300, 784), np.int8),
        np.full((20, 20), -128, np.int8),
        np.full(7, 2**32 - 1 - 2**31, np.uint32),
        np.full(7, 2**31 - 1, np.int64),
        np.full(7, -(2**31) + 1, np.int64),
        np.array(5, np.int32),
        np.array([[[[3]]]], np.uint8),
        np.eye(17, dtype=np.int8),
        np.eye(784, dtype=np.int8)[:30],
        np.array([[0] * 99 + [2**30], [-(2**30)] + [0] * 99]),
        np.array([7] * 90 + [0, 255], np.uint8),
        np.ones((1, 50), np.int8),
        np.ones((50, 1), np.int8),
        np.tile(np.array([-1, 0, 1], np.int8), (9, 30)),
        np.zeros((2, 70_000), np.int16),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_edges_come_back(array):
    round_trip(array)
    round_trip(np.eye(9, array.shape[-1] if array.ndim else 1, dtype=np.int8), array, array)


def test_a_constant_costs_bits_and_an_empty_array_nothing():
    assert len(round_trip(np.zeros((500, 800), np.int8))) <= 1
    assert len(round_trip(np.full((500, 800), 3, np.uint8))) <= 5
    assert ContextEncoder().offer(np.zeros((3, 0), np.int8)) is None
    assert ContextEncoder().finish() == b""


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, np.float32),
        np.array([2**31]),
        np.array([-(2**63)]),
        np.array([2**64 - 1], np.uint64),
        np.arange(-100, 100, dtype=np.int8),  # dense and wide: nothing to gain
        np.broadcast_to(np.int8(0), (context.MAX_PLACES + 1,)),
    ],
    ids=["float", "large", "smallest", "largest", "dense", "many"],
)
def test_what_is_not_for_it_is_left_to_others(array):
    assert ContextEncoder().offer(array) is None


def net(seed=0, units=(110, 50)):
    """784-110-50-10 as pruning leaves it: a neuron looks at a few patches of the image; some keep much, some little."""
    rng = np.random.default_rng(seed)
    sizes, keep, found = (784, *units, 10), (0.02, 0.08, 0.3), []
    wanted = np.ones(784)
    for k, m, share in zip(sizes[:-1], sizes[1:], keep, strict=True):
        field = rng.normal(size=(m, k))
        if k == 784:
            image = field.reshape(m, 28, 28)
            for axis in (1, 2, 1, 2):
                image = image + np.roll(image, 1, axis) + np.roll(image, -1, axis)
            image = image + 8 * rng.normal(size=image.shape)
            y, x = np.mgrid[-1:1:28j, -1:1:28j]
            field = (image * np.exp(-2 * (x * x + y * y))).reshape(m, k)
        field = field / np.abs(field).std() * rng.gamma(2, 1, (m, 1)) * wanted
        cut = np.quantile(np.abs(field), 1 - share)
        codes = np.rint(field / cut) * (np.abs(field) >= cut)
        found.append(np.clip(codes, -7, 7).astype(np.int8))
        wanted = np.count_nonzero(found[-1], axis=1) ** 0.5
    return found


def test_it_is_a_tenth_shorter_than_a_static_code():
    """Of all places, and of those in live rows and columns alone, both with real bytes."""
    static = live = 0
    for array in net():
        static += len(encodings.encode(array)[1])
        rows, columns = array.any(axis=1), array.any(axis=0)
        live += len(entropy.encode(np.ascontiguousarray(array[rows][:, columns]).ravel()))
        live += len(encodings.encode(rows.astype(np.uint8))[1]) + len(encodings.encode(columns.astype(np.uint8))[1])
    own = len(stream_of(*net()))
    assert own < 0.85 * static
    assert own < 0.9 * live


def test_the_units_are_known_from_the_matrix_before():
    """The second matrix is shorter behind the first, whose rows say which of its columns are dead."""
    rng = np.random.default_rng(0)
    alive = rng.random(60) < 0.5
    first = ((rng.random((60, 80)) < 0.2) * alive[:, None]).astype(np.int8)
    second = ((rng.random((30, 60)) < 0.2) * alive).astype(np.int8)
    assert len(stream_of(first, second)) < len(stream_of(first)) + len(stream_of(second)) - 3


def test_a_picture_of_neighbours_is_shorter_than_the_same_shuffled():
    rng = np.random.default_rng(0)
    image = np.zeros((40, 28, 28), np.int8)
    for i in range(40):
        y, x = rng.integers(4, 24, 2)
        image[i, y - 3 : y + 3, x - 3 : x + 3] = rng.random((6, 6)) < 0.7
    flat = image.reshape(40, 784)
    assert len(round_trip(flat)) < 0.6 * len(round_trip(flat[:, rng.permutation(784)]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_codebook_with_its_zero_in_the_middle_costs_as_much_as_signed_levels(dtype):
    levels = net()[0]
    shifted = (levels.astype(int) + (8 if dtype == np.uint8 else 0)).astype(dtype)
    assert abs(len(round_trip(shifted)) - len(round_trip(levels))) <= 5


# a decoder trusts nothing


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=12), st.sampled_from(DTYPES))
def test_junk_is_refused_or_decodes_to_the_shape_asked_for(data, shape, dtype):
    decoder = ContextDecoder(data)
    try:
        assert decoder.decode(shape, np.dtype(dtype)).shape == shape
        decoder.finish()
    except ArtifactError as error:
        assert str(error)


def decode(stream, shape, dtype="int8"):
    decoder = ContextDecoder(stream)
    array = decoder.decode(shape, np.dtype(dtype))
    decoder.finish()
    return array


def test_wrong_streams_are_named():
    array = net()[0]
    stream = stream_of(array)
    np.testing.assert_array_equal(decode(stream, array.shape), array)
    refused = 0
    for length in range(0, len(stream) - 4, 37):  # a shorter number is a number too: the checksum knows better
        try:
            assert not (decode(stream[:length], array.shape) == array).all()
        except ArtifactError as error:
            refused += bool(re.search("end too early|left over|too large", str(error)))
    assert refused > 0.9 * len(range(0, len(stream) - 4, 37))
    with pytest.raises(ArtifactError, match="left over"):
        decode(stream + bytes(9), array.shape)
    with pytest.raises(ArtifactError, match="can't hold float32"):
        decode(stream, array.shape, "float32")
    with pytest.raises(ArtifactError, match="can't hold"):
        decode(stream, (3, 0))
    with pytest.raises(ArtifactError, match="a code too large for int8"):
        decode(stream_of(np.array([0, 0, 300], np.int16)), (3,))
    with pytest.raises(ArtifactError, match="a code too large for uint8"):
        decode(stream_of(np.full(50, -100, np.int8)), (50,), "uint8")


def test_a_promise_of_a_million_places_from_no_bytes_takes_little_time():
    started = time.perf_counter()
    with pytest.raises(ArtifactError, match="end too early|too large"):
        decode(b"\x00", (1000, 1000))
    with pytest.raises(ArtifactError, match="can't hold"):
        decode(b"\x00", (context.MAX_PLACES + 1,))
    assert time.perf_counter() - started < 20


# every machine


def test_the_tables_are_not_near_a_half():
    """Else a machine whose exp or log errs in the last bit would have another table."""
    squash, stretch = tables()
    with localcontext(prec=30):
        half = Decimal("0.5")
        for x in range(-3071, 3072, 1):
            exact = Decimal(65536) / (1 + (Decimal(-x) / 256).exp())
            assert abs(exact % 1 - half) > Decimal("1e-7"), x
            assert squash[x + 3071] == min(max(int(exact + half), 16), 65520)
        for p in range(0, 32768):
            q = (Decimal(p) + half) / 65536
            exact = 256 * (q / (1 - q)).ln()
            assert abs(exact % 1 + half) > Decimal("1e-7"), p  # negative: the remainder is too
            assert stretch[p] == -stretch[65535 - p] == int(exact.to_integral_value())


CODE = """
import sys, hashlib
from pathlib import Path
if sys.argv[2] == "bare":
    sys.modules["numba"] = None
from mlperf_opt.artifacts import load_graph, save_graph
from mlperf_opt.graph import graph_hash
graph = load_graph(Path(sys.argv[1]))
print(graph_hash(graph), save_graph(graph, Path(sys.argv[1] + ".again")).sha256)
"""


@pytest.mark.parametrize("kind", ["bare", "one thread", "many threads"])
def test_another_process_has_the_same_bits(kind, tmp_path):
    """Also without numba: the same functions run as they stand; and it writes the same bytes."""
    graph, path = lenet(5, hidden=(12, 12)), tmp_path / "m"
    saved = save_graph(graph, path)
    threads = "1" if kind == "one thread" else "7"
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "PYTHONHASHSEED": "3"}
    command = [sys.executable, "-c", CODE, str(path), kind]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()
    assert found == [graph_hash(graph), saved.sha256]


def test_a_file_without_the_stream_needs_no_numba(tmp_path):
    save_graph(verify(lenet().with_weights({})), tmp_path / "with")
    build = GraphBuilder("plain")
    x = build.input("x", ("N", 40), "float32")
    rng = np.random.default_rng(0)
    graph = build.finish(build.node("linear", "fc", x, weight=rng.normal(size=(9, 40)).astype(np.float32)))
    codes = Weight(rng.integers(-127, 128, (9, 40)).astype(np.int8), Affine(np.float32(1), None, 8))
    save_graph(graph, tmp_path / "dense")
    save_graph(graph.with_weights({"fc.weight": codes}), tmp_path / "codes")
    save_graph(quantized_graph(), tmp_path / "quantized")
    code = """
import sys
from pathlib import Path
from mlperf_opt.artifacts import load_graph, save_graph
for path in sys.argv[1:]:
    save_graph(load_graph(Path(path)), Path(path + "2"))
    print(Path(path).name, "numba" in sys.modules)
"""
    command = [sys.executable, "-c", code, *(str(tmp_path / name) for name in ("dense", "codes", "quantized", "with"))]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert found == ["dense False", "codes False", "quantized False", "with True"]


# in a file


@pytest.mark.parametrize("codes", [np.zeros((9, 40)), np.full((9, 40), 3), np.eye(9, 40)], ids=["zeros", "constant", "eye"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_low_bit_codes_come_back_from_a_file(codes, bits, tmp_path):
    build = GraphBuilder("g")
    x = build.input("x", ("N", 40), "float32")
    graph = build.finish(build.node("linear", "fc", x, weight=np.zeros((9, 40), np.float32)))
    encoding = Affine(np.float32(0.25), None, bits)
    weight = Weight(np.minimum(codes, encoding.limit).astype(np.int8), encoding)
    graph = verify(graph.with_weights({"fc.weight": weight}))
    saved = save_graph(graph, tmp_path / "m")
    assert graph_hash(load_graph(tmp_path / "m")) == graph_hash(graph)
    assert saved.weights_bytes < 50


def test_a_codebook_comes_back_from_a_file(tmp_path):
    graph = lenet_conv()
    save_graph(graph, tmp_path / "m")
    back = load_graph(tmp_path / "m")
    assert graph_hash(back) == graph_hash(graph)
    weight = back.weights["conv1.weight"]
    assert isinstance(weight.encoding, Codebook)
    np.testing.assert_array_equal(weight.dense(), graph.weights["conv1.weight"].dense())
    assert weight.is_zero.any()


def test_a_small_net_has_a_small_file(tmp_path):
    """The container: what is not the weights' own takes less than 256 bytes."""
    saved = save_graph(lenet(0, 784, (110, 50), density=0.03), tmp_path / "m")
    assert saved.file_bytes - saved.weights_bytes < 256


def test_431080_weights_take_less_than_two_seconds():
    rng = np.random.default_rng(0)
    shapes = [(20, 1, 5, 5), (20,), (50, 20, 5, 5), (50,), (500, 800), (500,), (10, 500), (10,)]
    codes = [(rng.integers(-3, 4, s) * (rng.random(s) < 0.05)).astype(np.int8) for s in shapes]
    round_trip(*codes[:2])  # compiled
    started = time.process_time()
    stream = stream_of(*codes)
    decoder = ContextDecoder(stream)
    for array in codes:
        assert decoder.decode(array.shape, array.dtype).tobytes() == array.tobytes()
    assert sum(array.size for array in codes) == 431_080
    assert time.process_time() - started < 2


def test_the_writer_takes_the_stream_where_it_is_shorter(tmp_path):
    graph = lenet()
    envelope = model_file._to_envelope(graph)
    chosen = json.loads(envelope.layout)["arrays"]
    assert "context" in chosen
    sizes = [len(encodings.encode(array)[1]) for array in arrays(graph).values()]
    assert len(envelope.packed) < sum(sizes)


def test_the_bytes_of_a_stream_are_those_of_the_page():
    """A change that moves a single bit needs a new version of the format."""
    digest = hashlib.sha256(stream_of(*net())).hexdigest()
    assert digest == "fd970cf57fd57d5f878dc956e8a43178f657bc600cb1e9e2b44d9c44e12e511c"


def test_models_that_ship_still_load():
    found = [load_graph(path).name for path in Path(__file__).parents[2].glob("models/*/weights.safetensors")]
    assert {"mlp", "cnn", "transformer"} <= set(found)
