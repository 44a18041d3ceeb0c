"""What a data set is: three disjoint splits, the task that they pose, and a hash of it all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.data.tokenizer import Tokenizer
from mlperf_opt.errors import DataError

Array = NDArray[Any]
Task = Literal["classification", "completion", "language"]
HeldOut = Literal["test", "calibration"]


@dataclass(frozen=True)
class Split:
    """Inputs and targets of equal length: images (N, C, H, W) or vectors with class ids (N,), or tokens (N, T) with the
    token that follows each (N, T), -1 where it doesn't count."""

    inputs: Array
    targets: Array

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise DataError(f"{len(self.inputs)} inputs, but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def arrays(self) -> tuple[Array, Array]:
        """All that there is, to be hashed."""
        return self.inputs, self.targets

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """Return the numbers of ``count`` samples, each once before any comes again."""
        return _permutations(len(self), count, rng)

    def take(self, rows: Array) -> tuple[Array, Array]:
        """Return copies of the inputs and targets of those samples."""
        return self.inputs[rows], self.targets[rows]


@dataclass(frozen=True)
class Stream:
    """A training split that is one long text: a sample is a window of it, and may start at any token.

    Attributes:
        tokens: (n,) token ids of any integer type, perhaps mapped from a file: only what is drawn is read.
        window: tokens of a sample.
    """

    tokens: Array
    window: int

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.window:
            raise DataError(f"{len(self.tokens)} tokens to train on are too few for windows of {self.window}")

    def __len__(self) -> int:
        """Windows side by side, each with the token that follows it."""
        return (len(self.tokens) - 1) // self.window

    @property
    def arrays(self) -> tuple[Array]:
        """All that there is, to be hashed."""
        return (self.tokens,)

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """Return where ``count`` windows start: side by side from an offset of up to a window, so that none overlaps another
        before all of the text was seen."""
        room = (len(self.tokens) - 1) % self.window
        offset = int(rng.integers(self.window))
        side_by_side = len(self) if offset <= room else len(self) - 1
        if side_by_side == 0:  # a text of a single window
            return np.zeros(count, np.int64)
        return offset + self.window * _permutations(side_by_side, count, rng)

    def take(self, rows: Array) -> tuple[Array, Array]:
        """Return the windows (b, window) that start there and, for each token, the one behind it: int64."""
        windows = self.tokens[rows[:, None] + np.arange(self.window + 1)].astype(np.int64)
        return windows[:, :-1], windows[:, 1:]


def _permutations(rows: int, count: int, rng: np.random.Generator) -> Array:
    return np.concatenate([rng.permutation(rows) for _ in range(-(-count // rows))])[:count]


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits. Training uses ``train``, every choice ``calibration``, and reports ``test``.

    Attributes:
        name: name in configurations and records.
        task: classification (quality is accuracy), completion (exact match of the completed prompt) or language (nats for
            each token of the test split).
        train: what weights are fitted to.
        calibration: what settings are chosen on.
        test: what is reported.
        prompt: but for classification: the first tokens of a row that are given where the rest is to be generated.
        answer: but for classification: tokens to generate.
        tokenizer: but for classification: what the tokens stand for.
    """

    name: str
    task: Task
    train: Split | Stream
    calibration: Split
    test: Split
    prompt: int = 0
    answer: int = 0
    tokenizer: Tokenizer | None = None

    @cached_property
    def largest(self) -> tuple[int, int]:
        """The largest input and the largest target: of tokens and classes, one less than a model must know."""
        if self.tokenizer is not None:
            return self.tokenizer.size - 1, self.tokenizer.size - 1
        assert isinstance(self.train, Split)
        inputs, targets = self.train.arrays
        return int(inputs.max()), int(targets.max())

    def held_out(self, name: HeldOut) -> Split:
        """Return the split of that name: ``test`` for what is reported, ``calibration`` while settings are chosen."""
        return {"test": self.test, "calibration": self.calibration}[name]

    @cached_property
    def sha256(self) -> str:
        """Hash of all arrays of all splits."""
        digest = hashlib.sha256()
        for split in (self.train, self.calibration, self.test):
            for array in split.arrays:
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)  # a mapped file is read bit by bit, not copied
        return digest.hexdigest()


def on_demand(load: Callable[[], Dataset]) -> Dataset:
    """Return what stands for a data set that is loaded, once, when something of it is first looked at."""
    loaded = cache(load)

    class OnDemand:
        def __getattr__(self, name: str) -> Any:
            return getattr(loaded(), name)

    return cast(Dataset, OnDemand())
