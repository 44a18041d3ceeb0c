"""Images and labels in IDX files (LeCun's format), plain or gzipped: MNIST, and any set laid out like it.

An IDX file is a big-endian header (0, 0, type 8 = uint8, number of axes, then one uint32 per axis) and the bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import numpy as np

from mlperf_opt.data.dataset import Array, Dataset, Split
from mlperf_opt.data.digits import split_slices
from mlperf_opt.errors import DataError

ENVIRONMENT = "MLPERF_OPT_DATA"
_CALIBRATION = 5_000
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MNIST_SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # the PyTorch project's mirror
# SHA-256 of the four MNIST files once unpacked
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load_idx(name: str, root: str | None) -> Dataset:
    """Read the folder ``root/name``: of the training images the last 5,000 are the calibration split.

    Args:
        name: name of the set, and of its folder.
        root: folder of data sets; None takes the environment variable MLPERF_OPT_DATA.

    Returns:
        images float32 (N, 1, H, W) in 0..1, classes int64 (N,).

    Raises:
        DataError: no folder given, a missing, unreadable or malformed file, or an MNIST file that isn't MNIST's.
    """
    folder = _folder(name, root)
    images, labels, test_images, test_labels = (_read(folder, file, name) for file in _FILES)
    _check_pair(folder, images, labels)
    _check_pair(folder, test_images, test_labels)
    train = len(images) - _CALIBRATION
    if train < 1:
        raise DataError(f"{folder}: {len(images)} training images are too few for a calibration split of {_CALIBRATION}")
    fit, choose, _ = split_slices(train, _CALIBRATION)
    pixels, classes = _scale(images), labels.astype(np.int64)
    return Dataset(
        name,
        "classification",
        Split(pixels[fit], classes[fit]),
        Split(pixels[choose], classes[choose]),
        Split(_scale(test_images), test_labels.astype(np.int64)),
    )


def _check_pair(folder: Path, images: Array, labels: Array) -> None:
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(f"{folder}: images {images.shape} and labels {labels.shape}; expected (N, H, W) and (N,)")


def _scale(images: Array) -> Array:
    pixels = images.astype(np.float32)
    pixels /= 255  # in place: MNIST's are 188 MB
    return pixels[:, None]


def _folder(name: str, root: str | None) -> Path:
    place = root or os.environ.get(ENVIRONMENT)
    if not place:
        source = f" (its four files: {MNIST_SOURCE})" if name == "mnist" else ""
        raise DataError(f"data={name} needs a folder that holds {name}/: set data.root=FOLDER or {ENVIRONMENT}{source}")
    return Path(place) / name


def _read(folder: Path, file: str, name: str) -> Array:
    path = folder / file
    try:
        path = next((p for p in (path, folder / f"{file}.gz") if p.exists()), None)
        if path is None:
            wanted = f"the IDX files of {name} into {folder}"
            if name == "mnist":
                wanted = f"{MNIST_SOURCE}{file}.gz into {folder} (SHA-256 unpacked {MNIST_SHA256[file]})"
            raise DataError(f"{folder / file}[.gz] is missing: fetch {wanted}")
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if name == "mnist" and hashlib.sha256(data).hexdigest() != MNIST_SHA256[file]:
        raise DataError(f"{path} is not MNIST's file: its SHA-256 unpacked must be {MNIST_SHA256[file]}")
    return parse_idx(data, str(path))


def parse_idx(data: bytes, path: str) -> Array:
    """Return the uint8 array of an IDX file. Raises `DataError` unless header and length agree."""
    axes = data[3] if len(data) >= 4 else 0
    start = 4 + 4 * axes
    if len(data) < start or data[:3] != b"\x00\x00\x08" or not 1 <= axes <= 4:
        raise DataError(f"{path} is no IDX file of bytes")
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    if len(data) - start != math.prod(shape):
        raise DataError(f"{path}: {len(data) - start} bytes of data, but its header says {shape}")
    try:
        return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
    except ValueError:  # no bytes at all, and axes whose product numpy can't hold
        raise DataError(f"{path}: its header says {shape}") from None
