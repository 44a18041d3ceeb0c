"""How often a model is right, counted on held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import MlperfOptError
from mlperf_opt.measure.statistics import wilson_interval
from mlperf_opt.settings import require

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """A proportion of right answers.

    Attributes:
        metric: ``accuracy`` or ``exact_match``.
        value: right / n, 0..1.
        low, high: its 95 % Wilson interval.
        correct: (n,) bool, read-only.
        outputs: what the model gave, read-only: float32 (n, classes) logits, or (n, length) completions.
        nan_rows: samples whose output holds a NaN; they count as wrong.
    """

    metric: str
    value: float
    low: float
    high: float
    correct: NDArray[np.bool_]
    outputs: Array
    nan_rows: int


def accuracy(predict: Callable[[Array], Array], inputs: Array, targets: Array, batch: int) -> Quality:
    """Return the share of samples whose largest logit is that of the target class.

    Args:
        predict: (b, ...) inputs -> (b, classes) logits.
        inputs: (n, ...).
        targets: (n,) class numbers.
        batch: samples a call; the last call may have fewer.

    Raises:
        ConfigError: ``batch`` below 1.
        MlperfOptError: no samples, a target for each is missing or out of range, or ``predict`` gives another shape.
    """
    logits = _run(predict, inputs, len(targets), batch).astype(np.float32, copy=False)
    if logits.ndim != 2:
        raise MlperfOptError(f"accuracy needs one row of logits a sample, got the shape {logits.shape}")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise MlperfOptError(
            f"the targets are classes {targets.min()}..{targets.max()}, but the model has {logits.shape[1]} classes"
        )
    broken = np.any(np.isnan(logits), axis=1)
    # argmax would return the place of a NaN, which may be the target's
    return _quality("accuracy", (logits.argmax(axis=1) == targets) & ~broken, logits, broken)


def exact_match(complete: Callable[[Array], Array], prompts: Array, answers: Array, batch: int) -> Quality:
    """Return the share of prompts whose completion equals the answer in every position.

    Args:
        complete: (b, prompt length) tokens -> (b, answer length) tokens.
        prompts: (n, prompt length).
        answers: (n, answer length).
        batch: prompts a call; the last call may have fewer.

    Raises:
        ConfigError: ``batch`` below 1.
        MlperfOptError: no samples, an answer for each is missing, or ``complete`` gives another shape.
    """
    completions = _run(complete, prompts, len(answers), batch)
    if completions.shape != answers.shape:
        raise MlperfOptError(f"the completions have the shape {completions.shape}, the answers {answers.shape}")
    broken = np.any(np.isnan(completions), axis=1)
    return _quality("exact_match", (completions == answers).all(axis=1), completions, broken)


def _run(call: Callable[[Array], Array], inputs: Array, expected: int, batch: int) -> Array:
    require(batch >= 1, "batch", batch, "1 or more")
    if len(inputs) == 0 or len(inputs) != expected:
        raise MlperfOptError(f"cannot measure the quality: {len(inputs)} samples and {expected} answers")
    return np.concatenate(list(_batches(call, inputs, batch)))


def _batches(call: Callable[[Array], Array], inputs: Array, batch: int) -> Iterator[Array]:
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        output = np.array(call(part))  # a copy: a runtime may reuse its buffers
        if output.ndim == 0 or len(output) != len(part):
            raise MlperfOptError(f"the model gave {output.shape[:1] or 'no'} rows for {len(part)} samples")
        yield output


def _quality(metric: str, correct: NDArray[np.bool_], outputs: Array, broken: NDArray[np.bool_]) -> Quality:
    right = int(correct.sum())
    low, high = wilson_interval(right, correct.size)
    correct.flags.writeable = False
    outputs.flags.writeable = False
    return Quality(
        metric=metric,
        value=right / correct.size,
        low=low,
        high=high,
        correct=correct,
        outputs=outputs,
        nan_rows=int(broken.sum()),
    )
