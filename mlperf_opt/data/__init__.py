"""Data sets, by name in `DATASETS`: name -> (function of the configured root folder)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache

from mlperf_opt.data.dataset import Dataset, HeldOut, Split
from mlperf_opt.data.digits import load_digits
from mlperf_opt.data.idx import ENVIRONMENT, load_idx
from mlperf_opt.data.loader import Loader, random_crop, random_shift
from mlperf_opt.data.reverse import make_reverse
from mlperf_opt.errors import ConfigError, did_you_mean

DATASETS: dict[str, Callable[[str | None], Dataset]] = {
    "digits": lambda _root: load_digits(),
    "reverse": lambda _root: make_reverse(),
    "mnist": lambda root: load_idx("mnist", root),
}


def load_data(name: str, root: str | None = None) -> Dataset:
    """Return a data set by name.

    Raises:
        ConfigError: an unknown name.
        DataError: its files are missing or damaged.
    """
    if name not in DATASETS:
        raise ConfigError(f"data.name={name}: no such data set{did_you_mean(name, DATASETS)}")
    return _load(name, root or os.environ.get(ENVIRONMENT))


@lru_cache(maxsize=2)  # the jobs of a sweep share the data; the folder is part of the key, whoever named it
def _load(name: str, root: str | None) -> Dataset:
    return DATASETS[name](root)


__all__ = ["DATASETS", "Dataset", "HeldOut", "Loader", "Split", "load_data", "random_crop", "random_shift"]
