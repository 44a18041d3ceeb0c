"""Data sets, by name in `DATASETS`: name -> function of the configured root folder and of settings of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from functools import lru_cache

from mlperf_opt.data.dataset import Dataset, HeldOut, Split, Stream, on_demand
from mlperf_opt.data.digits import load_digits
from mlperf_opt.data.idx import ENVIRONMENT, load_idx
from mlperf_opt.data.loader import Loader, random_crop, random_shift
from mlperf_opt.data.reverse import make_reverse
from mlperf_opt.data.text import load_text
from mlperf_opt.data.tokenizer import Tokenizer
from mlperf_opt.data.tokenizer import from_data as tokenizer_from_data
from mlperf_opt.errors import ConfigError, did_you_mean

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": lambda _root: load_digits(),
    "reverse": lambda _root: make_reverse(),
    "mnist": lambda root: load_idx("mnist", root),
    "text": load_text,
}


def load_data(name: str, root: str | None = None, **own: Hashable) -> Dataset:
    """Return a data set by name; ``own`` are the settings of `load_text`.

    Raises:
        ConfigError: an unknown name.
        DataError: its files are missing or damaged.
    """
    if name not in DATASETS:
        raise ConfigError(f"data.name={name}: no such data set{did_you_mean(name, DATASETS)}")
    return _load(name, root or os.environ.get(ENVIRONMENT), **own)


@lru_cache(maxsize=2)  # the jobs of a sweep share the data; the folder is part of the key, whoever named it
def _load(name: str, root: str | None, **own: Hashable) -> Dataset:
    return DATASETS[name](root, **own)


__all__ = [
    "DATASETS",
    "Dataset",
    "HeldOut",
    "Loader",
    "Split",
    "Stream",
    "Tokenizer",
    "load_data",
    "on_demand",
    "random_crop",
    "random_shift",
    "tokenizer_from_data",
]
