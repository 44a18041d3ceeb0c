"""The two sets that ship: what they hold, that their splits are disjoint, and that they never change."""

import numpy as np
import pytest

from mlperf_opt.data import DATASETS, Dataset, Split, load_data
from mlperf_opt.data.reverse import make_reverse
from mlperf_opt.errors import ConfigError, DataError

HASHES = {
    "digits": "d7718eca5ad1ffd762557447fc4a368de71f014bf0dcacac5a309a5a816bdae1",
    "reverse": "429307c3bda55cf271d407bf92a75076acfd53e1f28f66240f53183a4d5bd947",
}


def _splits(name):
    data = load_data(name)
    return data.train, data.calibration, data.test


@pytest.mark.parametrize("name", HASHES)
def test_the_arrays_are_the_same_as_ever(name):
    assert load_data(name).sha256 == HASHES[name]


def test_every_number_of_every_split_counts_in_the_hash():
    def variant(place=None):
        arrays = [np.zeros((3, 2)), np.zeros(3, int), np.zeros((2, 2)), np.zeros(2, int), np.zeros((1, 2)), np.zeros(1, int)]
        if place is not None:
            arrays[place].flat[-1] = 1
        pairs = zip(arrays[::2], arrays[1::2], strict=True)
        return Dataset("d", "classification", *(Split(x, y) for x, y in pairs)).sha256

    assert len({variant(place) for place in (None, 0, 1, 2, 3, 4, 5)}) == 7


def test_digits_have_the_documented_sizes_and_values():
    sizes = []
    for split in _splits("digits"):
        sizes.append(len(split))
        assert split.inputs.shape == (len(split), 1, 8, 8) and split.inputs.dtype == np.float32
        assert split.targets.shape == (len(split),) and split.targets.dtype == np.int64
        assert split.inputs.min() == 0 and split.inputs.max() == 1
        sixteenths = split.inputs.astype(np.float64) * 16
        np.testing.assert_array_equal(sixteenths, np.rint(sixteenths))
    assert sizes == [1000, 200, 597]


def test_digits_are_stratified():
    """Each class has its share of each split, to within one and a half samples."""
    splits = _splits("digits")
    counts = np.array([np.bincount(split.targets, minlength=10) for split in splits])
    shares = counts.sum(axis=0) / 1797
    for split, found in zip(splits, counts, strict=True):
        np.testing.assert_allclose(found, shares * len(split), atol=1.5)


def test_digits_are_disjoint():
    """All 1,797 images of the source differ, so no image may stand in two splits, nor twice in one."""
    rows = [image.tobytes() for split in _splits("digits") for image in split.inputs]
    assert len(rows) == len(set(rows)) == 1797


def test_digits_look_like_their_labels():
    """The mean training image of each class names most of the test images: labels and images belong together."""
    train, _, test = _splits("digits")
    means = np.stack([train.inputs[train.targets == digit].mean(axis=0) for digit in range(10)])
    distances = np.square(test.inputs[:, None] - means[None]).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == test.targets).mean() > 0.85


def test_every_reversed_row_is_right():
    sizes = []
    for split in _splits("reverse"):
        sizes.append(len(split))
        word, separator, answer = split.inputs[:, :8], split.inputs[:, 8], split.inputs[:, 9:]
        assert split.inputs.shape == split.targets.shape == (len(split), 16)
        assert split.inputs.dtype == split.targets.dtype == np.int64
        assert (separator == 26).all() and word.min() >= 0 and word.max() <= 25
        np.testing.assert_array_equal(answer, np.flip(word, axis=1)[:, :7])
        assert (split.targets[:, :8] == -1).all()
        np.testing.assert_array_equal(split.targets[:, 8:], np.flip(word, axis=1))
        np.testing.assert_array_equal(split.targets[:, 8:-1], split.inputs[:, 9:])  # a target is the next token
    assert sizes == [20_000, 500, 1_000]
    assert set(np.unique(load_data("reverse").train.inputs)) == set(range(27))
    assert load_data("reverse").prompt == 9


def test_no_word_stands_in_two_splits_or_twice():
    words = [word.tobytes() for split in _splits("reverse") for word in split.inputs[:, :8]]
    assert len(words) == len(set(words)) == 21_500


def test_letters_are_evenly_spread():
    """About 1 in 26 at each of the eight places: 20,000 draws, six standard deviations."""
    words = load_data("reverse").train.inputs[:, :8]
    counts = np.array([np.bincount(words[:, place], minlength=26) for place in range(8)])
    assert np.abs(counts - 20_000 / 26).max() < 6 * np.sqrt(20_000 / 26)


def test_reverse_is_a_function_of_its_seed():
    assert make_reverse(0).sha256 == HASHES["reverse"]
    assert make_reverse(1).sha256 != HASHES["reverse"]


def test_a_set_is_loaded_once():
    assert load_data("digits") is load_data("digits")


@pytest.mark.parametrize(
    "name, near", [("digit", "did you mean 'digits'"), ("MNIST", "one of: digits, mnist"), ("", "one of")]
)
def test_an_unknown_set_is_refused(name, near):
    with pytest.raises(ConfigError, match=rf"data\.name={name}: no such data set.*{near}"):
        load_data(name)


def test_the_names_are_those_documented():
    assert {"digits", "reverse", "mnist"} <= set(DATASETS)


def test_inputs_and_targets_must_have_one_length():
    with pytest.raises(DataError, match="3 inputs, but 2 targets"):
        Split(np.zeros((3, 2)), np.zeros(2))
