"""Every encoding comes back bit for bit, and refuses bytes that it never writes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlperf_opt.artifacts import encodings
from mlperf_opt.artifacts.payload import Reader, signed, varint
from mlperf_opt.errors import ArtifactError
from mlperf_opt.ops import Spec

DTYPES = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)] + ["float16", "float32", "float64"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


def any_array():
    return st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES, fill=st.just(np.dtype(dtype).type(0))))


def round_trip(array, name=None):
    """Encode and decode; return the encoding's name and the size in bytes."""
    if name is None:
        name, data = encodings.encode(array)
    else:
        data = encodings.ENCODINGS[name].encode(array.ravel())
        if data is None:
            return name, None
    reader = Reader(data)
    back = encodings.decode(name, reader, Spec(array.shape, str(array.dtype)))
    assert reader.remaining == 0
    assert (back.shape, back.dtype, back.tobytes()) == (array.shape, array.dtype, array.tobytes())
    return name, len(data)


@settings(max_examples=150, deadline=None)
@given(any_array())
def test_the_shortest_encoding_returns_every_bit(array):
    _, size = round_trip(array)
    assert size <= array.nbytes


@pytest.mark.parametrize("name", encodings.ENCODINGS)
@settings(max_examples=60, deadline=None)
@given(array=any_array())
def test_each_encoding_returns_every_bit(name, array):
    round_trip(array, name)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 600), st.floats(0, 1), st.integers(1, 255), st.sampled_from(["int8", "int16", "uint8"]), st.integers(0, 9)
)
def test_entropy_returns_integers_of_any_sparsity_and_range(size, sparsity, high, dtype, seed):
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    codes = np.clip(rng.integers(-high, high + 1, size), info.min, info.max) * (rng.random(size) >= sparsity)
    round_trip(codes.astype(dtype), "entropy")


@pytest.mark.parametrize(
    "array",
    [
        np.array([-128, 127, -128, 0], np.int8),
        np.array([0, 2**64 - 1], np.uint64),
        np.array([-(2**63), 0, -(2**63)], np.int64),
        np.array([-(2**63), 2**63 - 1], np.int64),
        np.array([2**63 - 2, 2**63 - 1], np.int64),
        np.array([-0.0, 0.0, np.inf, -np.inf], np.float32),
        np.array([0x7FC00001, 0xFFC12345, 0x7F800001], np.uint32).view(np.float32),
        np.array(3.0, np.float32),
        np.zeros((3, 0, 2), np.int8),
        np.arange(12, dtype=np.int8).reshape(3, 4).T,
        np.arange(10, dtype=np.float32)[::-1],
        np.zeros(70_001, np.int16),
        np.arange(70_001, dtype=np.int32) % 1000 - 7,
    ],
    ids=str,
)
def test_edges_return_every_bit(array):
    for name in (None, *encodings.ENCODINGS):
        round_trip(np.ascontiguousarray(array).reshape(array.shape), name)
    name, data = encodings.encode(array)
    back = encodings.decode(name, Reader(data), Spec(array.shape, str(array.dtype)))
    assert back.tobytes() == array.tobytes()


def test_each_kind_of_array_takes_the_encoding_made_for_it(rng):
    dense = rng.normal(size=200).astype(np.float32)
    scales = (dense.view(np.uint32) & 0xFFFF0000).view(np.float32)
    pruned = np.where(rng.random(200) < 0.5, np.float32(0), dense)
    assert round_trip(dense) == ("raw", 800)
    assert round_trip(scales) == ("short", 400)
    name, size = round_trip(pruned)
    assert name == "sparse"
    # a bitmap, the values, the numbers of the two encodings and the bitmap's width and minimum
    assert size <= 200 // 8 + 4 * np.count_nonzero(pruned) + 3
    assert round_trip(rng.integers(-300, 300, 200).astype(np.int32)) == ("bits", 1 + 2 + 200 * 10 // 8)
    assert round_trip(np.full(1000, 7, np.int64)) == ("bits", 2)
    assert round_trip(np.array(128, np.uint8)) == ("raw", 1)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("size", [1000, 2048, 30_000])
def test_codes_come_close_to_their_empirical_entropy(size, sparsity, rng):
    weights = rng.normal(size=size)
    weights[np.abs(weights) <= np.quantile(np.abs(weights), sparsity)] *= sparsity == 0
    codes = np.rint(weights / np.abs(weights).max() * 127).astype(np.int8)
    counts = np.unique(codes, return_counts=True)[1]
    entropy_bytes = -(counts * np.log2(counts / size)).sum() / 8
    _, coded = round_trip(codes)
    # The empirical entropy knows the counts of up to 255 codes for nothing; the file pays for its table.
    assert entropy_bytes * 0.95 < coded < entropy_bytes + 48 + 0.01 * size


def test_a_sparse_tensor_of_1000_codes(rng):
    codes = np.where(rng.random(1000) < 0.9, 0, rng.integers(-3, 4, 1000)).astype(np.int8)
    p = np.bincount(codes + 3) / 1000
    entropy_bytes = -(p[p > 0] * np.log2(p[p > 0])).sum() * 1000 / 8
    name, coded = round_trip(codes)
    assert name == "entropy"
    assert coded < entropy_bytes + 16


def test_the_stream_is_cut_to_the_byte(rng):
    """1000 fair bits are 125 bytes; whole words of 4 bytes, of which the coder may need two, would be more."""
    codes = rng.integers(0, 2, 1000).astype(np.uint8)
    data = encodings.ENCODINGS["entropy"].encode(codes)
    table, length = 5 + 2, 1
    assert len(data) <= table + length + 126


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*encodings.ENCODINGS]), st.binary(max_size=60), st.integers(0, 300), st.sampled_from(DTYPES))
def test_junk_is_refused_or_decodes_to_the_size_asked_for(name, data, count, dtype):
    try:
        assert encodings.decode(name, Reader(data), Spec((count,), dtype)).shape == (count,)
    except ArtifactError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("name", "data", "dtype", "words"),
    [
        ("zip", b"", "int8", "unknown encoding 'zip'"),
        (7, b"", "int8", "unknown encoding 7"),
        ("raw", b"123", "float32", "8 bytes wanted, 3 left"),
        ("short", b"1234", "float64", "'short' is for float32, not float64"),
        ("bits", b"", "float32", "'bits' is for integers, not float32"),
        ("bits", b"\x08\x00ab", "int8", "8 bits per int8"),
        ("bits", b"\x04" + signed(120) + b"\xff", "int8", "120..135, too large for int8"),
        ("bits", b"\x04" + b"\xff" * 12, "int8", "a number without an end"),
        ("entropy", b"", "float32", "'entropy' is for integers, not float32"),
        ("entropy", bytes([0, 0, 5, 0, 0, 96, 0, 0]), "int8", "impossible probability table"),
        ("entropy", bytes([0, 6, 5, 0, 0, 96, 0, 0]), "int8", "impossible probability table"),
        ("entropy", bytes([0, 1, 5, 0, 2, 0, 0, 0]), "int8", "impossible probability table"),
        ("entropy", bytes([0, 1, 200, 0, 0, 96, 0, 0]), "int8", "codes up to 200, too large for int8"),
        ("entropy", bytes([0, 1, 128, 255, 0, 96, 0]) + varint(2) + b"\xff\xf0", "int8", "a code too large for int8"),
        ("entropy", bytes([0, 1, 5, 0, 0, 96, 0]) + varint(900), "int8", "900 bytes wanted, 0 left"),
        ("entropy", bytes([0, 1, 5, 0, 0, 96, 0]) + varint(8) + b"\xff" * 8, "int8", "does not decode"),
        ("sparse", b"\x50", "int8", "names an encoding that doesn't exist"),
        ("sparse", b"\x00\x01", "int8", "2 bytes wanted, 1 left"),
    ],
)
def test_impossible_bytes_are_named(name, data, dtype, words):
    with pytest.raises(ArtifactError, match=words):
        encodings.decode(name, Reader(data), Spec((2,), dtype))


@given(st.integers(-(2**63), 2**64 - 1))
def test_signed_numbers_return(value):
    reader = Reader(signed(value))
    assert (reader.signed(), reader.remaining) == (value, 0)
