"""What a data set is: three disjoint splits, the task that they pose, and a hash of it all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import DataError

Array = NDArray[Any]
Task = Literal["classification", "completion"]
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


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits. Training uses ``train``, every choice ``calibration``, and reports ``test``.

    Attributes:
        name: name in configurations and records.
        task: classification (quality is accuracy) or completion (exact match of the completed prompt).
        train: what weights are fitted to.
        calibration: what settings are chosen on.
        test: what is reported.
        prompt: completion only: tokens of each row that are the prompt; what follows has to be completed.
    """

    name: str
    task: Task
    train: Split
    calibration: Split
    test: Split
    prompt: int = 0

    def held_out(self, name: HeldOut) -> Split:
        """Return the split of that name: ``test`` for what is reported, ``calibration`` while settings are chosen."""
        return {"test": self.test, "calibration": self.calibration}[name]

    @cached_property
    def sha256(self) -> str:
        """Hash of all arrays of all splits."""
        digest = hashlib.sha256()
        for split in (self.train, self.calibration, self.test):
            for array in (split.inputs, split.targets):
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
