"""IDX files: good ones, bad ones, and messages that say where to get what is missing."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.data import DATASETS, idx, load_data
from mlperf_opt.data.idx import MNIST_SHA256, load_idx, parse_idx
from mlperf_opt.errors import DataError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def _arrays(train=5003, test=4):
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (train, 2, 3)),
        rng.integers(0, 10, train),
        rng.integers(0, 256, (test, 2, 3)),
        rng.integers(0, 10, test),
    ]


def _folder(root, name="small", arrays=None, packed=()):
    folder = root / name
    folder.mkdir()
    for file, array in zip(FILES, arrays or _arrays(), strict=True):
        if file in packed:
            (folder / f"{file}.gz").write_bytes(gzip.compress(_idx(array)))
        else:
            (folder / file).write_bytes(_idx(array))
    return folder


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 2, 3), (2, 1, 2, 2), (0,), (0, 28, 28)])
def test_a_good_file_is_parsed(shape, rng):
    array = rng.integers(0, 256, shape)
    parsed = parse_idx(_idx(array), "file")
    np.testing.assert_array_equal(parsed, array)
    assert parsed.dtype == np.uint8


GOOD = _idx(np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    "data, fact",
    [
        (b"", "no IDX file"),
        (b"\0\0\x08", "no IDX file"),
        (GOOD[:9], "no IDX file"),  # within the header
        (b"\x01" + GOOD[1:], "no IDX file"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], "no IDX file"),  # float32
        (b"\0\0\x08\0", "no IDX file"),  # no axes
        (b"\0\0\x08\x05" + b"\0\0\0\1" * 5 + b"\0", "no IDX file"),  # five axes
        (GOOD[:-1], r"5 bytes of data, but its header says \(2, 3\)"),
        (GOOD + b"\0", r"7 bytes of data, but its header says \(2, 3\)"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", r"0 bytes of data, but its header says \(4294967295,\)"),
        (b"\0\0\x08\x04\0\0\0\0" + b"\xff" * 12, r"its header says \(0, 4294967295"),  # no bytes, but too big for numpy
    ],
)
def test_a_bad_file_is_refused_by_its_path(data, fact):
    with pytest.raises(DataError, match=rf"^some/file.*{fact}"):
        parse_idx(data, "some/file")


_HEADERS = st.builds(
    lambda axes, shape, rest: b"\0\0\x08" + bytes([axes]) + b"".join(n.to_bytes(4, "big") for n in shape) + rest,
    st.integers(0, 6),
    st.lists(st.integers(0, 3) | st.integers(0, 2**32 - 1), max_size=5),
    st.binary(max_size=30),
)


@given(st.binary(max_size=60) | _HEADERS)
def test_junk_is_parsed_or_refused_and_nothing_else(data):
    try:
        parsed = parse_idx(data, "junk")
    except DataError as error:
        assert str(error).startswith("junk")
    else:
        assert data == _idx(parsed)


@pytest.mark.parametrize("packed", [(), FILES, FILES[:1]])
def test_a_folder_of_any_name_is_read(packed, tmp_path):
    """Plain, gzipped or mixed: the last 5,000 training images are the calibration split."""
    arrays = _arrays()
    _folder(tmp_path, packed=packed)
    data = load_idx("small", str(tmp_path))
    assert (data.name, data.task) == ("small", "classification")
    assert [len(split) for split in (data.train, data.calibration, data.test)] == [3, 5000, 4]
    images = np.concatenate([data.train.inputs, data.calibration.inputs])
    np.testing.assert_allclose(images[:, 0], arrays[0] / 255, rtol=1e-6)
    np.testing.assert_array_equal(np.concatenate([data.train.targets, data.calibration.targets]), arrays[1])
    np.testing.assert_allclose(data.test.inputs[:, 0], arrays[2] / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.test.targets, arrays[3])
    assert images.dtype == np.float32 and data.test.targets.dtype == np.int64
    assert images.min() == 0 and images.max() == 1


def test_the_environment_names_the_folder_and_the_setting_wins(tmp_path, monkeypatch):
    _folder(tmp_path)
    monkeypatch.setenv("MLPERF_OPT_DATA", str(tmp_path))
    assert len(load_idx("small", None).train) == 3
    with pytest.raises(DataError, match="is missing"):
        load_idx("small", str(tmp_path / "elsewhere"))


def test_data_once_loaded_is_not_found_in_another_environment(tmp_path, monkeypatch):
    """The data are kept by the folder that they came from, not by "whatever the environment said then"."""
    monkeypatch.setitem(DATASETS, "small", lambda root: load_idx("small", root))
    _folder(tmp_path)
    monkeypatch.setenv("MLPERF_OPT_DATA", str(tmp_path))
    assert load_data("small") is load_data("small", str(tmp_path))
    monkeypatch.delenv("MLPERF_OPT_DATA")
    with pytest.raises(DataError, match="data=small needs a folder"):
        load_data("small")


@pytest.mark.parametrize("value", [None, ""])
def test_no_folder_given(value, monkeypatch):
    monkeypatch.delenv("MLPERF_OPT_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("MLPERF_OPT_DATA", value)
    with pytest.raises(DataError, match=r"data=small needs a folder .* set data\.root=FOLDER or MLPERF_OPT_DATA"):
        load_idx("small", None)
    with pytest.raises(DataError, match=r"data=mnist needs a folder .*\(its four files: https://.*/mnist/\)"):
        load_idx("mnist", None)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_mnist_file_names_its_folder_and_checksum(file, tmp_path, monkeypatch):
    """The files before it are there (their checksums are set to those of the small set)."""
    folder = _folder(tmp_path, "mnist")
    for name in FILES[: FILES.index(file)]:
        monkeypatch.setitem(MNIST_SHA256, name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
    (folder / file).unlink()
    with pytest.raises(DataError, match=f"{file}.* is missing") as caught:
        load_idx("mnist", str(tmp_path))
    assert str(folder) in str(caught.value) and MNIST_SHA256[file] in str(caught.value)
    assert f"fetch {idx.MNIST_SOURCE}{file}.gz into" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mnist_with_the_right_checksums_is_read(tmp_path, monkeypatch):
    folder = _folder(tmp_path, "mnist", packed=FILES[:2])
    for name, array in zip(FILES, _arrays(), strict=True):
        monkeypatch.setitem(MNIST_SHA256, name, hashlib.sha256(_idx(array)).hexdigest())
    assert len(load_idx("mnist", str(tmp_path)).train) == 3 and folder.exists()


@pytest.mark.parametrize("packed", [(), FILES])
def test_a_file_that_is_not_mnists_is_refused(packed, tmp_path):
    _folder(tmp_path, "mnist", packed=packed)
    with pytest.raises(DataError, match=f"is not MNIST's file.*{MNIST_SHA256[FILES[0]]}"):
        load_idx("mnist", str(tmp_path))


def test_the_published_checksums_are_sha256():
    assert set(MNIST_SHA256) == set(FILES)
    assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in MNIST_SHA256.values())


@pytest.mark.parametrize("damage", ["cut", "empty", "no gzip", "flipped"])
def test_a_damaged_gzip_file_is_refused(damage, tmp_path):
    folder = _folder(tmp_path, packed=FILES)
    path = folder / f"{FILES[0]}.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    damaged = {"cut": path.read_bytes()[:-20], "empty": b"", "no gzip": b"plain text", "flipped": bytes(data)}
    path.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=rf"{FILES[0]}\.gz"):
        load_idx("small", str(tmp_path))


MISMATCHES = {
    "labels too few": (1, np.zeros(5002)),
    "labels too many": (1, np.zeros(5004)),
    "test labels too few": (3, np.zeros(3)),
    "labels are images": (1, np.zeros((5003, 2, 3))),
    "images are labels": (0, np.zeros(5003)),
    "images with colours": (2, np.zeros((4, 2, 3, 3))),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_images_and_labels_must_fit(what, tmp_path):
    place, array = MISMATCHES[what]
    arrays = _arrays()
    arrays[place] = array
    _folder(tmp_path, arrays=arrays)
    with pytest.raises(DataError, match=r"small: images \(.*\) and labels \(.*\); expected \(N, H, W\) and \(N,\)"):
        load_idx("small", str(tmp_path))


def test_too_few_images_for_a_calibration_split(tmp_path):
    _folder(tmp_path, arrays=_arrays(train=5000))
    with pytest.raises(DataError, match="5000 training images are too few"):
        load_idx("small", str(tmp_path))


@pytest.mark.parametrize("method", ["read_bytes", "exists"])
def test_a_file_that_may_not_be_read_is_one_line(method, tmp_path, monkeypatch):
    def refuse(self, *_args, **_options):
        raise PermissionError(13, "Permission denied")

    _folder(tmp_path)
    monkeypatch.setattr(idx, "Path", type("Guarded", (type(Path()),), {method: refuse}))
    with pytest.raises(DataError, match=rf"cannot read .*{FILES[0]}.*: Permission denied"):
        load_idx("small", str(tmp_path))


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    folder = _folder(tmp_path)
    (folder / FILES[0]).unlink()
    (folder / FILES[0]).mkdir()
    with pytest.raises(DataError, match="cannot read .*: Is a directory"):
        load_idx("small", str(tmp_path))
