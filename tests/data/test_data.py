"""Data sets, IDX files, batches and crops."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.data import Loader, Split, load_data, on_demand, random_crop
from mlperf_opt.data.idx import load_idx, parse_idx
from mlperf_opt.errors import ConfigError, DataError


def test_the_digits_are_split_evenly():
    data = load_data("digits")
    parts = (data.train, data.calibration, data.test)
    assert [len(part) for part in parts] == [1000, 200, 597]
    for part in parts:
        assert np.bincount(part.targets, minlength=10).min() >= 0.09 * len(part)
        pixels = part.inputs * 16
        np.testing.assert_array_equal(pixels, np.rint(pixels))
        assert part.inputs.min() == 0 and part.inputs.max() == 1
    assert data.sha256.startswith("d7718eca5ad1")


def test_every_reversed_word_is_right_and_in_one_split():
    data = load_data("reverse")
    words = []
    for part in (data.train, data.calibration, data.test):
        word = part.inputs[:, :8]
        assert (part.inputs[:, 8] == 26).all() and (part.targets[:, :8] == -1).all()
        np.testing.assert_array_equal(part.targets[:, 8:], word[:, ::-1])
        np.testing.assert_array_equal(part.inputs[:, 9:], word[:, ::-1][:, :7])
        words += map(tuple, word.tolist())
    assert len(set(words)) == len(words) == 21_500


def test_an_unknown_set_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_data("digit")


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def test_a_folder_of_idx_files_is_read(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, count in (("train", 5010), ("t10k", 20)):
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(rng.integers(0, 256, (count, 4, 4)))))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(rng.integers(0, 10, count)))
    data = load_idx("mine", str(tmp_path))
    assert (len(data.train), len(data.calibration), len(data.test)) == (10, 5000, 20)
    assert data.test.inputs.shape == (20, 1, 4, 4) and data.test.inputs.dtype == np.float32
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(19)))
    with pytest.raises(DataError, match="labels"):
        load_idx("mine", str(tmp_path))


def test_a_missing_or_wrong_mnist_file_names_its_checksum(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*is missing.*SHA-256 unpacked [0-9a-f]{64}"):
        load_idx("mnist", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((1, 28, 28))))
    with pytest.raises(DataError, match="is not MNIST's file"):
        load_idx("mnist", str(tmp_path))


@given(st.binary(max_size=40))
def test_junk_is_no_idx_file(data):
    try:
        parsed = parse_idx(data, "junk")
    except DataError as error:
        assert "junk" in str(error)
    else:
        assert parsed.nbytes + 4 + 4 * parsed.ndim == len(data)


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_a_wrong_batch_is_refused(batch):
    with pytest.raises(DataError, match="expected a whole number >= 1"):
        Loader(Split(np.zeros((3, 2)), np.zeros(3)), batch, 0)


def test_an_epoch_holds_every_sample_once_in_an_order_of_its_own():
    loader = Loader(Split(np.arange(10)[:, None], np.arange(10)), 4, seed=1)
    first, again, second = ([y for _, y in loader.epoch(e)] for e in (0, 0, 1))
    assert [len(y) for y in first] == [4, 4, 2] and len(loader) == 3
    assert sorted(np.concatenate(first).tolist()) == list(range(10))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()


def test_crops_reach_every_corner():
    """The image numbers its pixels, so the first pixel of a crop tells where it was cut."""
    image = np.arange(1, 32 * 32 + 1, dtype=np.float32).reshape(1, 1, 32, 32)
    crops = random_crop(np.repeat(image, 20_000, axis=0), (16, 16), 4, np.random.default_rng(0))
    padded = np.pad(image[0, 0], 4)
    for top, left in ((0, 0), (0, 24), (24, 0), (24, 24)):
        wanted = padded[top : top + 16, left : left + 16]
        assert (crops[:, 0] == wanted).all(axis=(1, 2)).any()
    with pytest.raises(DataError, match="does not fit"):
        random_crop(image, (41, 16), 4, np.random.default_rng(0))


def test_data_on_demand_is_loaded_once_when_it_is_looked_at():
    """An attempt that fails leaves nothing behind: the next one says the same."""
    calls, real = [], load_data("digits")

    def load():
        calls.append(len(calls))
        if len(calls) == 1:
            raise DataError("missing")
        return real

    data = on_demand(load)
    assert calls == []
    with pytest.raises(DataError, match="missing"):
        len(data.test)
    assert data.test is real.test and data.sha256 == real.sha256 and data.held_out("calibration") is real.calibration
    assert data.largest == real.largest and calls == [0, 1]
