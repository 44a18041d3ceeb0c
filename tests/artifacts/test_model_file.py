"""A graph comes back from its file as it was, and nothing else comes out of any file."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy  # noqa: TID251
from artifact_graphs import (
    GRAPHS,
    affine,
    float_graph,
    forged,
    half_graph,
    lenet,
    of_version_1,
    pruned_graph,
    quantized_graph,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_opt.artifacts import SavedModel, container, encodings, is_model_file, load_graph, model_file, save_graph
from mlperf_opt.errors import ArtifactError
from mlperf_opt.graph import Affine, Weight, arrays, graph_hash, structure


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def saved_bytes(graph, path):
    save_graph(graph, path)
    return path.read_bytes()


@pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)
def test_a_graph_comes_back_as_it_was(make, path):
    graph = make()
    saved = save_graph(graph, path)
    assert graph_hash(load_graph(path)) == graph_hash(graph)
    assert saved == SavedModel(path, path.stat().st_size, saved.weights_bytes, saved.sha256)
    assert 0 < saved.weights_bytes < saved.file_bytes
    assert saved.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert is_model_file(path)


@pytest.mark.parametrize("kind", sorted(GRAPHS.keys() - {"edge"}))  # which uses a name that version 1 packed
def test_a_file_of_version_1_is_still_read(kind, path, monkeypatch):
    graph = GRAPHS[kind]()
    monkeypatch.setattr(model_file.ContextEncoder, "offer", lambda *_: None)
    parts = model_file._to_envelope(graph)
    data = of_version_1(json.loads(parts.layout), parts.packed, parts.native)
    path.write_bytes(data)
    assert is_model_file(path)
    assert graph_hash(load_graph(path)) == graph_hash(graph)
    content = bytearray(data)
    for place in range(0, len(content), 5):
        content[place] ^= 1 << place % 8
        with pytest.raises(ArtifactError):
            model_file.parse(container.from_bytes(bytes(content)), bytes(content))
        content[place] ^= 1 << place % 8


def test_weights_bytes_are_those_of_the_weights(path):
    graph = float_graph()
    # two matrices as tensors of their own, two small biases in `packed`: 4 bytes a parameter and nothing else
    assert save_graph(graph, path).weights_bytes == sum(a.nbytes for a in arrays(graph).values())
    tensors = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(tensors["fc1.weight"], graph.weights["fc1.weight"].values)
    assert tensors.keys() == {"fc1.weight", "fc2.weight", "g"}


def test_smaller_graphs_make_smaller_files(path):
    """Per step of the classic chain: prune, then quantize, then both."""
    big = {"inputs": 64, "hidden": 32}
    dense = save_graph(float_graph(**big), path).weights_bytes
    pruned = save_graph(pruned_graph(sparsity=0.5, **big), path).weights_bytes
    quantized = save_graph(quantized_graph(float_graph(**big)), path).weights_bytes
    both = save_graph(quantized_graph(pruned_graph(sparsity=0.5, **big)), path).weights_bytes
    assert 0.5 < pruned / dense < 0.6
    assert 0.2 < quantized / dense < 0.26
    assert 0.1 < both / dense < 0.17
    assert save_graph(half_graph(), path).weights_bytes == save_graph(float_graph(), path).weights_bytes / 2


def test_a_bias_scale_that_is_a_product_costs_nothing(path):
    graph = quantized_graph()
    saved = save_graph(graph, path)
    bias = graph.weights["fc1.bias"]
    scale = np.nextafter(bias.encoding.scale, np.float32(1))  # one bit off: no longer the product
    other = graph.with_weights({"fc1.bias": Weight(bias.values, Affine(scale, 0, 32))})
    assert save_graph(other, path).weights_bytes - saved.weights_bytes == scale.nbytes
    assert graph_hash(load_graph(path)) == graph_hash(other)


def test_the_same_graph_gives_the_same_bytes(path, tmp_path):
    """Also in another process, whose hashes are seeded otherwise."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:2]; from pathlib import Path; from artifact_graphs import quantized_graph;"
        "from mlperf_opt.artifacts import save_graph; save_graph(quantized_graph(), Path(sys.argv[2]))"
    )
    data = saved_bytes(quantized_graph(), path)
    assert saved_bytes(quantized_graph(), path) == data
    folder = str(Path(__file__).parent)
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, folder, str(tmp_path / seed)], check=True, env=environment)
        assert (tmp_path / seed).read_bytes() == data


# damage


@pytest.fixture(scope="module", params=[quantized_graph, lenet])
def small(request, tmp_path_factory):
    return saved_bytes(request.param(), tmp_path_factory.mktemp("small") / "m")


def deflate(data, bits=-zlib.MAX_WBITS):
    """Without the dictionary, which a stream need not use; or with zlib's own header."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, bits)
    return compressor.compress(data) + compressor.flush()


def refuses(path, data, words="."):
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=words) as caught:
        load_graph(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


def test_every_flipped_bit_is_noticed(small, path):
    content = bytearray(small)
    for place in range(len(content)):
        for bit in range(8):
            content[place] ^= 1 << bit
            with pytest.raises(ArtifactError):
                model_file.parse(container.from_bytes(bytes(content)), bytes(content))
            content[place] ^= 1 << bit
    path.write_bytes(content)
    load_graph(path)


def test_every_truncation_and_extension_is_noticed(small, path):
    for length in range(0, len(small), 7):
        refuses(path, small[:length])
    for tail in (b"\0", b" ", small):
        refuses(path, small + tail)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_junk_is_refused(tmp_path_factory, data):
    refuses(tmp_path_factory.getbasetemp() / "junk", data)
    header = len(data).to_bytes(8, "little") + data
    refuses(tmp_path_factory.getbasetemp() / "junk", header)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "shorter than its header says"),
        ((2**60).to_bytes(8, "little") + b"{}", "shorter than its header says"),
        ((2**24).to_bytes(8, "little") + bytes(2**24), "its header has 16777216 bytes, the limit is 8388608"),
        ((2).to_bytes(8, "little") + b"[]", "its header is malformed"),
        ((20).to_bytes(8, "little") + b'{"__metadata__": 7}    ', "its header is malformed"),
        ((5).to_bytes(8, "little") + b"[[[[[", "its header is no JSON"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "its header is no JSON"),
        ((15).to_bytes(8, "little") + b'{"a":1,"a":2}  ', "a name stands twice"),
        ((8).to_bytes(8, "little") + b'{"a":1} ', "no safetensors file: .*"),
        (safetensors.numpy.save({"a": np.zeros(3)}), "no model of ours: its metadata has no 'mlperf_opt'"),
        (safetensors.numpy.save({"a": np.zeros(3)}, {"format": "pt"}), "no model of ours"),
        (forged({}, metadata={"mlperf_opt": "3"}), "is '3'; this program reads versions '1' and '2'"),
        (forged({}, metadata={"format": "mlperf_opt", "version": "3"}), "is '3'; this program reads versions '1' and '2'"),
        (forged({}, metadata={"format": "mlperf_opt"}), "is None; this program"),
        (forged({}, metadata={"format": "mlperf_opt", "version": "1"}), "its checksum is wrong"),
        (forged({}, metadata={"mlperf_opt": "2", "by": "me"}), "header is not|malformed"),
        (forged(deflate(b" " * 10**8)), "it has more than 8388608 bytes"),
        (forged(deflate(b"[" * 10**6)), "the structure of its graph is malformed"),
        (forged(deflate(b"{}") + b"x"), "goes on behind its end"),
        (forged(deflate(b"{}" * 99)[:-3]), "it is cut off"),
        (forged(deflate(b"{}", zlib.MAX_WBITS)), "the structure of its graph is malformed"),
        (forged(b"\xff no deflate"), "the structure of its graph is malformed"),
        (of_version_1({}), "the structure of its graph is malformed"),
        (forged([]), "the structure of its graph is malformed"),
        (forged({"graph": {"nodes": [0] * 10_001, "weights": []}, "arrays": []}), "more than 10000 nodes"),
        (forged({"graph": {"nodes": [], "weights": []}, "arrays": ["raw"]}), "one encoding for each array"),
    ],
    ids=range(26),
)
def test_foreign_and_forged_files_are_named(data, words, path):
    refuses(path, data, words)


def layout_of(graph, **changes):
    """The JSON of ``graph`` with every array packed raw, the structure's fields changed; and the packed bytes."""
    data = json.loads(json.dumps(structure(graph))) | changes
    return {"graph": data, "arrays": ["raw"] * len(arrays(graph))}, b"".join(a.tobytes() for a in arrays(graph).values())


def test_the_forger_can_write_a_good_file(path):
    graph = float_graph()
    path.write_bytes(forged(*layout_of(graph)))
    assert graph_hash(load_graph(path)) == graph_hash(graph)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (["w", [10**30], "float32", None], "impossible shape"),
        (["w", [2**31, 2**31], "float32", None], "impossible shape"),
        (["w", ["N"], "float32", None], "impossible shape"),
        (["w", [1] * 40, "float32", None], "impossible shape"),
        (["w", [2**20, 2**20], "int8", None], "arrays of 1099511627776 bytes can't be in this file"),
        (["w", [3], "float31", None], "malformed"),
        (["w", [3], ["float32"], None], "malformed"),
        ([["w"], [3], "float32", None], "malformed"),
        (["w", [3], "int8", {"axis": 4, "bits": 8}], "malformed"),
        (["w", [3], "int8", {}], "malformed"),
        (["w", [3], "float32"], "malformed"),
    ],
    ids=str,
)
def test_impossible_weights_are_named(weight, words, path):
    data = {"nodes": [], "weights": [weight], "name": "g", "inputs": [], "outputs": [], "state": []}
    arrays = 2 if weight[-1] else 1
    refuses(path, forged({"graph": data, "arrays": ["raw"] * arrays}, b"x" * 12), words)


def test_wrong_arrays_are_named(path):
    graph = float_graph()
    data, packed = layout_of(graph)
    refuses(path, forged(data, packed[:-1]), "the packed arrays end too early")
    refuses(path, forged(data, packed + b"x"), "0 tensors and 1 packed bytes that its graph doesn't need")
    refuses(path, forged(data, packed, {"extra": np.zeros(2)}), "1 tensors and 0 packed bytes")
    native = {"graph": data["graph"], "arrays": ["native", "raw", "raw", "raw"]}
    refuses(path, forged(native, packed), "'fc1.weight' is missing or no float32")
    refuses(path, forged(native, packed, {"fc1.weight": np.zeros(2, np.float32)}), "'fc1.weight' is missing or no")
    for factors in (["fc1.weight"], ["nothing", "fc1.weight"], [["a"], "b"], [1, 2]):
        product = {"graph": data["graph"], "arrays": ["raw", ["product", *factors], "raw", "raw"]}
        refuses(path, forged(product, packed[:192] + packed[216:]), "must be the product of two stored float32 arrays")
    unknown = {"graph": data["graph"], "arrays": ["raw", "raw", "raw", {"a": 1}]}
    refuses(path, forged(unknown, packed), "unknown encoding")
    weights = data["graph"]["weights"]
    refuses(path, forged(*layout_of(graph, weights=[*weights, weights[0]])), "stands twice|one encoding")
    nan = packed[:-4] + np.float32(np.nan).tobytes()
    refuses(path, forged(data, nan), "its graph is not legal: .*not finite")


def test_a_graph_written_otherwise_is_refused(path):
    node = structure(float_graph())["nodes"][0]
    data, packed = layout_of(float_graph(), more=1)
    refuses(path, forged(data, packed), "not written as this program writes it")
    data["graph"].pop("more")
    data["graph"]["nodes"][0] = [node[0], node[1], node[2], {"stride": 1}]
    refuses(path, forged(data, packed), "its graph is not legal: ")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["relu", "x", "float32"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_json_of_any_form_is_refused_or_legal(data):
    """Replace one place of a good structure by anything."""
    forged_layout, packed = layout_of(quantized_graph())
    place = forged_layout
    while isinstance(place, list | dict) and place:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if data.draw(st.integers(0, 3)) == 0 or not isinstance(place[key], list | dict) or not place[key]:
            place[key] = data.draw(JSON)
            break
        place = place[key]
    content = forged(forged_layout, packed)
    try:
        model_file.parse(container.from_bytes(content), content)
    except ArtifactError as error:
        assert str(error)


# the disk


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_old_file(call, reason, path, monkeypatch):
    old = saved_bytes(float_graph(), path)

    def fail(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ArtifactError, match=f"cannot write {path}: {os.strerror(reason)}$"):
        save_graph(half_graph(), path)
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_disk_that_takes_a_few_bytes_at_a_time_is_served(path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
    save_graph(float_graph(), path)
    assert graph_hash(load_graph(path)) == graph_hash(float_graph())


def test_paths_that_cannot_be_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*missing: No such file or directory"):
        load_graph(tmp_path / "missing")
    with pytest.raises(ArtifactError, match=r"cannot read .*: it is a folder"):
        load_graph(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match=r"cannot read .*: it is no regular file"):
        load_graph(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match=r"cannot read .*: embedded null byte"):
        load_graph(tmp_path / "a\0b")
    with pytest.raises(ArtifactError, match=r"cannot write .*: No such file or directory"):
        save_graph(float_graph(), tmp_path / "no" / "m")
    with pytest.raises(ArtifactError, match=r"cannot write .*: Is a directory"):
        save_graph(float_graph(), tmp_path)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no space
    with pytest.raises(ArtifactError, match=r"cannot read .*: 1099511627776 bytes, the limit is 4294967296"):
        load_graph(huge)
    huge.unlink()


def test_weights_that_a_file_cannot_hold_are_named(path):
    graph = float_graph()
    strange = replace(graph, weights={**graph.weights, "fc1.bias": Weight(np.zeros(6, bool))})
    with pytest.raises(ArtifactError, match=r"'fc1.bias': a model file can't hold the dtype bool"):
        save_graph(strange, path)
    assert not path.exists()


# sabotage: what a broken part writes is caught before the file gets its name


def lose_a_byte(monkeypatch):
    monkeypatch.setattr(container, "_write_durably", lambda path, data: path.write_bytes(data[:-1]))


def lose_a_value(monkeypatch):
    raw = encodings.ENCODINGS["raw"]
    broken = replace(raw, encode=lambda flat: raw.encode(np.concatenate([flat[:-1], flat[:1]])))
    monkeypatch.setitem(encodings.ENCODINGS, "raw", broken)


def lose_the_sign_of_zero(monkeypatch):
    monkeypatch.setattr(encodings, "_words", lambda flat: flat)


def lose_the_name(monkeypatch):
    monkeypatch.setattr(model_file, "structure", lambda graph: structure(replace(graph, name="other")))


@pytest.mark.parametrize(
    ("sabotage", "kind"),
    [(lose_a_byte, "float"), (lose_a_value, "float"), (lose_the_sign_of_zero, "edge"), (lose_the_name, "float")],
)
def test_a_broken_writer_is_caught(sabotage, kind, path, monkeypatch):
    graph = GRAPHS[kind]()
    old = saved_bytes(graph, path)
    sabotage(monkeypatch)
    with pytest.raises(ArtifactError, match=r"cannot write .*: what was written does not read back"):
        save_graph(graph, path)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_bounds_leave_room_for_what_passes_make(path):
    """A million weights pruned to 99.9 % and quantized load again."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random((1000, 1000)) < 0.001, rng.normal(size=(1000, 1000)), 0).astype(np.float32)
    graph = float_graph(inputs=1000, hidden=1000)
    graph = quantized_graph(graph.with_weights({"fc1.weight": Weight(values)}))
    assert graph.weights["fc1.weight"].values.shape == affine(values).values.shape
    saved = save_graph(graph, path)
    assert saved.weights_bytes < 10_000
