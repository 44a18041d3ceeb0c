"""Batches: every sample once, in an order that (seed, epoch) decides; shifts and crops reach every place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.data import Loader, Split, random_crop, random_shift
from mlperf_opt.errors import DataError


def _numbered(rows, *shape):
    """Sample n is filled with n and has the target n."""
    inputs = np.empty((rows, *(shape or (2,))), np.float32)
    inputs[...] = np.arange(rows).reshape(-1, *[1] * (inputs.ndim - 1))
    return Split(inputs, np.arange(rows))


def _order(loader, epoch):
    return [int(t) for _, targets in loader.epoch(epoch) for t in targets]


@pytest.mark.parametrize("batch", [0, -1, 1.5, True, 2.0, "4", None, float("nan")])
def test_a_batch_is_a_whole_number_from_1(batch):
    with pytest.raises(DataError, match=rf"^batch={batch}: expected a whole number >= 1"):
        Loader(_numbered(5), batch, seed=0)


@pytest.mark.parametrize("shift", [-1, 0.5, True])
def test_a_shift_is_a_whole_number_from_0(shift):
    with pytest.raises(DataError, match=rf"^shift={shift}: expected a whole number >= 0"):
        Loader(_numbered(5, 1, 2, 2), 2, seed=0, shift=shift)


def test_an_empty_split_and_a_shift_of_vectors_are_refused():
    with pytest.raises(DataError, match="the split is empty"):
        Loader(Split(np.zeros((0, 2)), np.zeros(0)), 2, seed=0)
    with pytest.raises(DataError, match=r"shift=1: only images \(N, C, H, W\).*\(5, 2\)"):
        Loader(_numbered(5), 2, seed=0, shift=1)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_every_sample_comes_once_an_epoch(rows, batch, seed, epoch):
    loader = Loader(_numbered(rows), batch, seed)
    batches = list(loader.epoch(epoch))
    assert len(batches) == len(loader) == -(-rows // batch)
    assert [len(x) for x, _ in batches[:-1]] == [batch] * (len(batches) - 1)
    assert len(batches[-1][0]) == rows - batch * (len(batches) - 1) >= 1
    for inputs, targets in batches:
        np.testing.assert_array_equal(inputs[:, 0], targets)
    assert sorted(_order(loader, epoch)) == list(range(rows))


def test_the_order_depends_on_seed_and_epoch_alone():
    """Not on the batch size, on epochs run before, or on numpy's global generator."""
    fresh = _order(Loader(_numbered(50), 7, seed=3), 4)
    used = Loader(_numbered(50), 7, seed=3)
    for epoch in range(4):
        _order(used, epoch)
    np.random.default_rng(0).random(10)
    assert _order(used, 4) == fresh == _order(Loader(_numbered(50), 50, seed=3), 4)
    others = [_order(Loader(_numbered(50), 7, seed=seed), epoch) for seed, epoch in ((3, 5), (4, 4), (4, 3))]
    assert len({tuple(order) for order in [fresh, *others]}) == 4


def test_augmentation_depends_on_seed_and_epoch_alone():
    split = Split(np.random.default_rng(0).random((20, 1, 4, 4)), np.arange(20))

    def images(seed, epoch):
        return np.concatenate([x for x, _ in Loader(split, 8, seed, shift=1).epoch(epoch)])

    np.testing.assert_array_equal(images(1, 2), images(1, 2))
    assert not np.array_equal(images(1, 2), images(1, 3))


def test_batches_are_copies():
    split = _numbered(6)
    for inputs, _ in Loader(split, 6, seed=0).epoch(0):
        inputs[:] = -1
    assert split.inputs.min() == 0


def _moved(image, down, right):
    """The image moved by loops, zeros coming in."""
    height, width = image.shape[1:]
    found = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                found[:, y, x] = image[:, y - down, x - right]
    return found


@pytest.mark.parametrize("pixels", [1, 2])
def test_a_shift_moves_by_every_offset_and_fills_with_zeros(pixels, rng):
    """Each result is one of the (2 pixels + 1)^2 moves, and each of these occurs about equally often."""
    image = np.arange(1, 41, dtype=np.float32).reshape(2, 4, 5)
    count = 4000
    shifted = random_shift(np.repeat(image[None], count, axis=0), pixels, rng)
    assert shifted.shape == (count, 2, 4, 5) and shifted.dtype == np.float32
    offsets = range(-pixels, pixels + 1)
    moves = {_moved(image, down, right).tobytes(): (down, right) for down in offsets for right in offsets}
    seen = [moves[one.tobytes()] for one in shifted]
    frequency = [seen.count(move) for move in moves.values()]
    expected = count / len(moves)
    assert min(frequency) > expected - 6 * expected**0.5 and max(frequency) < expected + 6 * expected**0.5


def _places(crops, padding, width):
    """Where each crop of a numbered image (pixel = 1 + place) was cut, from any pixel that isn't padding."""
    found = set()
    for crop in crops:
        y, x = np.argwhere(crop[0] > 0)[0]
        top, left = divmod(int(crop[0, y, x]) - 1, width)
        found.add((top + padding - int(y), left + padding - int(x)))
    return found


@pytest.mark.parametrize("padding, offsets", [(4, 25), (0, 17)])
def test_a_crop_reaches_every_offset_of_a_large_image(padding, offsets, rng):
    """16 of 32 pixels: all offsets, bottom and right included, not just the first 2 * padding."""
    image = np.arange(1, 1025, dtype=np.float32).reshape(1, 1, 32, 32)
    crops = random_crop(np.repeat(image, 20 * offsets**2, axis=0), (16, 16), padding, rng)
    assert crops.shape == (20 * offsets**2, 1, 16, 16)
    assert _places(crops, padding, 32) == {(top, left) for top in range(offsets) for left in range(offsets)}


def test_a_crop_holds_what_is_there(rng):
    """Every crop, all channels, equals the window of the padded image at its place."""
    images = rng.random((200, 3, 5, 7)) + 1
    crops = random_crop(images, (4, 6), 1, rng)
    for image, crop in zip(images, crops, strict=True):
        padded = np.zeros((3, 7, 9))
        padded[:, 1:6, 1:8] = image
        windows = [padded[:, top : top + 4, left : left + 6] for top in range(4) for left in range(4)]
        assert any(np.array_equal(crop, window) for window in windows)


def test_a_crop_of_the_whole_image_is_the_image(rng):
    images = rng.random((3, 2, 4, 4))
    crops = random_crop(images, (4, 4), 0, rng)
    np.testing.assert_array_equal(crops, images)
    crops[:] = 0
    assert images.min() > 0


@pytest.mark.parametrize("size, padding", [((9, 4), 2), ((4, 9), 2), ((5, 5), 0), ((0, 4), 1), ((4, -1), 1), ((2, 2), -1)])
def test_a_crop_that_does_not_fit_is_refused(size, padding, rng):
    with pytest.raises(DataError, match=r"a crop of .* does not fit images of \(4, 4\)"):
        random_crop(np.zeros((2, 1, 4, 4)), size, padding, rng)
