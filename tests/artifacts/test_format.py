"""docs/format.md is enough to write a reader: this one follows the page and shares no code with the package."""

import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from artifact_graphs import GRAPHS, float_graph, lenet, lenet_conv, pruned_graph, quantized_graph
from context_by_the_page import Stream

from mlperf_opt.artifacts import save_graph
from mlperf_opt.graph import Affine, Weight, arrays, structure

DTYPES = {"U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4"}
TOTAL, CODER = 2**20, 2**24


class Bytes:
    def __init__(self, data):
        self.data, self.place = data, 0

    def take(self, n):
        self.place += n
        assert self.place <= len(self.data)
        return self.data[self.place - n : self.place]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


def smooth(b):
    return (3 * 255 * b * b - 2 * b**3) * TOTAL // 255**3


def frequencies(source, is_signed):
    zero, low, high, peak, bins = source.take(5)
    shape = source.take(bins or 2)
    z = smooth(zero)
    top = (TOTAL - z) * smooth(peak) // TOTAL
    width = high - low
    weights = []
    if bins:
        weights = [shape[i * bins // width] ** 2 for i in range(width)]
    else:
        s = shape[0] - 96
        weight, rate = 2**32, s * abs(s)
        for _ in range(width):
            weights.append(weight)
            weight = min(weight * (65536 - rate) // 65536, 2**40)
            rate = min(rate + shape[1] ** 2 // 4, 65536)
    magnitudes = [0] * low + [(TOTAL - z - top) * w // sum(weights) for w in weights] + [top]
    if is_signed:
        half = [m // 2 for m in magnitudes]
        table = [*half[:0:-1], z, *half[1:]]
    else:
        table = [z, *magnitudes[1:]]
    table[table.index(max(table))] += TOTAL - sum(table)
    return table, (high if is_signed else 0)


def entropy(source, count, dtype):
    table, offset = frequencies(source, np.dtype(dtype).kind == "i")
    n, left = len(table), [0]
    for frequency in table:
        left.append(left[-1] + frequency)
    left = [c * (CODER - n) // TOTAL + i for i, c in enumerate(left)]
    left[-1] = CODER
    stream = source.take(source.varint()) + bytes(16 + 4 * count)

    def word(i):
        return struct.unpack_from(">I", stream, 4 * i)[0]

    lower, width, point, place, codes = 0, 2**64 - 1, word(0) << 32 | word(1), 2, []
    for _ in range(count):
        scale = width >> 24
        quantile = ((point - lower) % 2**64) // scale
        symbol = next(i for i in range(n) if quantile < left[i + 1])
        codes.append(symbol - offset)
        lower, width = (lower + scale * left[symbol]) % 2**64, scale * (left[symbol + 1] - left[symbol])
        if width < 2**32:
            lower, width, point, place = lower << 32 & 2**64 - 1, width << 32, (point << 32 | word(place)) % 2**64, place + 1
    return np.array(codes, dtype)


def bits(source, count, dtype):
    width, low = source.take(1)[0], source.varint()
    low = low // 2 if low % 2 == 0 else -(low + 1) // 2
    digits = "".join(f"{byte:08b}" for byte in source.take((count * width + 7) // 8))
    return np.array([low + int(digits[i * width : (i + 1) * width] or "0", 2) for i in range(count)], dtype)


def raw(source, count, dtype):
    return np.frombuffer(source.take(count * np.dtype(dtype).itemsize), dtype)


def short(source, count, dtype):
    return np.array([x << 16 for x in struct.unpack(f"<{count}H", source.take(2 * count))], "<u4").view("<f4")


def sparse(source, count, dtype):
    where, what = divmod(source.take(1)[0], 16)
    mask = (raw, short, bits, entropy)[where](source, count, "u1").astype(bool)
    out = np.zeros(count, dtype)
    out[mask] = (raw, short, bits, entropy)[what](source, int(mask.sum()), dtype)
    return out


def dictionary():
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    lines = page.split("## The preset dictionary")[1].split("```json")[1].split("```")[0]
    return lines.replace("\n", "").encode()


def read_by_the_page(data):
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"mlperf_opt": "2"}
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    own = Bytes(tensors.pop("g").tobytes())
    checksum, compressed = own.take(8), own.take(own.varint())
    packed = own.data[own.place :]
    parts = [compressed, packed]
    for name in sorted(tensors):
        tensor = tensors[name]
        parts += [json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode(), tensor.tobytes()]
    assert hashlib.sha256(b"".join(struct.pack("<Q", len(p)) + p for p in parts)).digest()[:8] == checksum
    layout = json.loads(zlib.decompressobj(-15, zdict=dictionary()).decompress(compressed))
    specs = []
    for name, shape, dtype, meaning in layout["graph"]["weights"]:
        specs.append((name, shape, dtype))
        if meaning and "codebook" in meaning:
            specs.append((f"{name}:centroids", [meaning["codebook"]], "float32"))
        elif meaning:
            specs.append((f"{name}:scale", [] if meaning["axis"] is None else [shape[meaning["axis"]]], "float32"))
    source, found, products, in_stream = Bytes(packed), {}, {}, []
    decoders = {"raw": raw, "short": short, "bits": bits, "entropy": entropy, "sparse": sparse}
    for (name, shape, dtype), how in zip(specs, layout["arrays"], strict=True):
        if how == "native":
            found[name] = tensors[name]
        elif isinstance(how, list):
            products[name] = how[1:]
        elif how == "context":
            in_stream.append((name, shape, dtype))
        else:
            found[name] = decoders[how](source, int(np.prod(shape, dtype=int)), dtype).reshape(shape)
    if in_stream:
        stream = Stream(source.take(len(packed) - source.place))
        for name, shape, dtype in in_stream:
            found[name] = stream.array(shape, dtype)
        assert len(stream.data) <= stream.place <= len(stream.data) + 4
    assert source.place == len(packed)
    return layout, found | {name: found[a] * found[b] for name, (a, b) in products.items()}


def large_codes():
    """A sparse matrix whose sizes need the escape, and one around a centre that is not 0."""
    graph = lenet(3, hidden=(12, 12))
    rng = np.random.default_rng(3)
    weights = {}
    for name, centre in {"fc1.weight": 0, "fc2.weight": -3}.items():
        codes = rng.integers(-127, 128, graph.weights[name].values.shape)
        codes = np.where(rng.random(codes.shape) < 0.9, centre, codes)
        weights[name] = Weight(codes.astype(np.int8), Affine(np.float32(0.5), None, 8))
    return graph.with_weights(weights)


BIG = {
    "big quantized": lambda: quantized_graph(pruned_graph(inputs=64, hidden=32)),
    "big dense": lambda: quantized_graph(float_graph(inputs=64, hidden=32)),
    "image": lambda: lenet(1, inputs=784, hidden=(20, 12), density=0.03),
    "codes up to 200": large_codes,
    "more filters": lambda: lenet_conv(2, filters=16, size=3, density=0.02),
    "big sparse": lambda: pruned_graph(sparsity=0.95, inputs=64, hidden=32),
}


@pytest.mark.parametrize("make", [*GRAPHS.values(), *BIG.values()], ids=[*GRAPHS, *BIG])
def test_a_reader_written_from_the_page_finds_every_bit(make, tmp_path):
    graph = make()
    save_graph(graph, tmp_path / "m.safetensors")
    layout, found = read_by_the_page((tmp_path / "m.safetensors").read_bytes())
    assert layout["graph"] == json.loads(json.dumps(structure(graph)))
    expected = arrays(graph)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def test_the_graphs_above_use_every_encoding(tmp_path):
    seen = set()
    for make in (*GRAPHS.values(), *BIG.values()):
        save_graph(make(), tmp_path / "m")
        layout, _ = read_by_the_page((tmp_path / "m").read_bytes())
        seen |= {how if isinstance(how, str) else how[0] for how in layout["arrays"]}
    assert seen == {"native", "product", "raw", "short", "bits", "entropy", "sparse", "context"}
