"""Batches of a split, and augmentation of images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlperf_opt.data.dataset import Array, Split, Stream
from mlperf_opt.errors import DataError


@dataclass(frozen=True)
class Loader:
    """Shuffled batches; the last one of a pass over a split may be smaller.

    The order of an epoch depends on (seed, epoch) alone, so training resumes exactly without saving a generator.

    Attributes:
        split: the data.
        batch: samples a batch, a whole number >= 1.
        seed: of the order and the augmentation.
        shift: images only: each is moved by up to this many pixels each way, zeros coming in at the border.
        steps: batches an epoch; 0 for one pass over the split.
    """

    split: Split | Stream
    batch: int
    seed: int
    shift: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.batch, int) or isinstance(self.batch, bool) or self.batch < 1:
            raise DataError(f"batch={self.batch}: expected a whole number >= 1")
        if not len(self.split):
            raise DataError("the split is empty")
        if not isinstance(self.shift, int) or isinstance(self.shift, bool) or self.shift < 0:
            raise DataError(f"shift={self.shift}: expected a whole number >= 0")
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 0:
            raise DataError(f"steps={self.steps}: expected a whole number >= 0")
        shape = (len(self.split), self.split.window) if isinstance(self.split, Stream) else self.split.inputs.shape
        if self.shift and len(shape) != 4:
            raise DataError(f"shift={self.shift}: only images (N, C, H, W) can be shifted, not {shape}")

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.steps or math.ceil(len(self.split) / self.batch)

    @property
    def samples(self) -> int:
        """Samples an epoch."""
        return self.steps * self.batch or len(self.split)

    def epoch(self, epoch: int) -> Iterator[tuple[Array, Array]]:
        """Yield (inputs, targets) of each batch of that epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        order = self.split.draw(self.samples, rng)
        for start in range(0, len(order), self.batch):
            inputs, targets = self.split.take(order[start : start + self.batch])
            yield (random_shift(inputs, self.shift, rng) if self.shift else inputs), targets


def random_crop(images: Array, size: tuple[int, int], padding: int, rng: np.random.Generator) -> Array:
    """Cut one window of ``size`` out of each zero-padded image, at a place of its own.

    Args:
        images: (N, C, H, W).
        size: height and width of the window, at most H + 2 padding and W + 2 padding.
        padding: zeros added at each border.
        rng: draws the places, uniform over all that fit, the four corners included.

    Returns:
        (N, C, *size).

    Raises:
        DataError: a window that does not fit, or an empty one.
    """
    free = [have + 2 * padding - want for have, want in zip(images.shape[2:], size, strict=True)]
    if padding < 0 or min(free) < 0 or min(size) < 1:
        raise DataError(f"a crop of {size} with padding {padding} does not fit images of {images.shape[2:]}")
    count, channels, height, width = images.shape
    padded = np.zeros((count, channels, height + 2 * padding, width + 2 * padding), images.dtype)
    padded[:, :, padding : padding + height, padding : padding + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))  # (N, C, rows, columns, *size)
    rows, columns = (rng.integers(0, room + 1, len(images)) for room in free)
    return np.ascontiguousarray(windows[np.arange(len(images)), :, rows, columns])


def random_shift(images: Array, pixels: int, rng: np.random.Generator) -> Array:
    """Move each image (N, C, H, W) by up to ``pixels`` in each direction: a crop of its own size."""
    return random_crop(images, (images.shape[2], images.shape[3]), pixels, rng)
