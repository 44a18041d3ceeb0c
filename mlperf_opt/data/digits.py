"""digits: 1,797 handwritten digits of 8x8 pixels, 0..16 (Alpaydin and Kaynak, UCI ML Repository, 1998, CC BY 4.0).

``digits.npz`` holds the set that scikit-learn ships (its ``load_digits``), reordered once: stratified by class and dealt to
train, calibration and test, so that the split is data and doesn't depend on anybody's generator.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlperf_opt.data.dataset import Dataset, Split

TRAIN, CALIBRATION = 1000, 200  # the remaining 597 are the test split
_FILE = Path(__file__).with_name("digits.npz")


def load_digits() -> Dataset:
    """Return the data set: images float32 (N, 1, 8, 8) in 0..1, classes int64 (N,)."""
    with np.load(_FILE, allow_pickle=False) as stored:
        images = (stored["images"].astype(np.float32) / 16)[:, None]
        labels = stored["labels"].astype(np.int64)
    train, calibration, test = (Split(images[part], labels[part]) for part in split_slices(TRAIN, CALIBRATION))
    return Dataset("digits", "classification", train, calibration, test)


def split_slices(train: int, calibration: int) -> tuple[slice, slice, slice]:
    """Return the places of the train, calibration and test rows, in this order in the arrays."""
    return slice(0, train), slice(train, train + calibration), slice(train + calibration, None)
