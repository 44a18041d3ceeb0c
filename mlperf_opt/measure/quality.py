"""How often a model is right, or how well it predicts a text, counted on held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import MlperfOptError
from mlperf_opt.measure.statistics import Z95, wilson_interval
from mlperf_opt.settings import require

Array = NDArray[Any]


NATS = "nats_per_token"


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """A proportion of right answers, or how well a text is predicted.

    Attributes:
        metric: ``accuracy``, ``exact_match`` or ``nats_per_token``.
        value: right / n, 0..1; or nats, of which less is better.
        low, high: its 95 % interval: Wilson's, or over windows.
        correct: (n,) bool, read-only; None where no answer is right or wrong.
        outputs: what the model gave, read-only: float32 (n, classes) logits, or (n, length) completions; for nats those of
            each window, float64 (n,).
        nan_rows: samples whose output holds a NaN; they count as wrong, and make nats NaN.
    """

    metric: str
    value: float
    low: float
    high: float
    correct: NDArray[np.bool_] | None
    outputs: Array
    nan_rows: int

    @property
    def gain(self) -> float:
        """The value with a sign that makes more better."""
        return -self.value if self.metric == NATS else self.value


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


def nats_per_token(predict: Callable[[Array], Array], inputs: Array, targets: Array, batch: int) -> Quality:
    """Return the mean of -ln p(target), in nats, over the targets that count; its exponential is the perplexity.

    The interval is the normal one of a ratio over windows (Cochran, Sampling Techniques, 1977, 6.4): tokens of a window
    depend on each other, so windows are what is counted.

    Args:
        predict: (b, T) tokens -> (b, T, classes) logits.
        inputs: (n, T).
        targets: (n, T) token ids, negative where they don't count.
        batch: windows a call; the last call may have fewer.

    Raises:
        ConfigError: ``batch`` below 1.
        MlperfOptError: fewer than two windows, targets for each are missing or don't fit what ``predict`` gives.
    """
    _check_samples(inputs, len(targets), batch)
    if len(inputs) < 2:
        raise MlperfOptError("an interval needs two windows of text or more")
    parts = [targets[start : start + batch] for start in range(0, len(targets), batch)]
    sums = np.concatenate([_nats(*pair) for pair in zip(_batches(predict, inputs, batch), parts, strict=True)])
    counts = (targets >= 0).sum(axis=1)
    mean = float(sums.sum() / counts.sum())
    n, rest = len(sums), sums - mean * counts
    half = Z95 * float(np.sqrt(n / (n - 1) * (rest @ rest))) / float(counts.sum())
    sums.flags.writeable = False
    return Quality(
        metric=NATS,
        value=mean,
        low=mean - half,
        high=mean + half,
        correct=None,
        outputs=sums,
        nan_rows=int(np.isnan(sums).sum()),
    )


def _nats(logits: Array, targets: Array) -> NDArray[np.float64]:
    """Sum of -ln softmax(logits)[target] over each row's targets that count: (b, T, classes), (b, T) -> (b,)."""
    if logits.shape[:-1] != targets.shape or targets.max() >= logits.shape[-1]:
        raise MlperfOptError(f"logits {logits.shape} don't fit targets {targets.shape} up to {targets.max()}")
    logits = logits.astype(np.float64)  # the difference of two float32 may be none
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    nats = np.log(np.exp(shifted).sum(axis=-1)) - chosen
    return np.where(targets >= 0, nats, 0).sum(axis=-1)


def _run(call: Callable[[Array], Array], inputs: Array, expected: int, batch: int) -> Array:
    _check_samples(inputs, expected, batch)
    return np.concatenate(list(_batches(call, inputs, batch)))


def _check_samples(inputs: Array, expected: int, batch: int) -> None:
    require(batch >= 1, "batch", batch, "1 or more")
    if len(inputs) == 0 or len(inputs) != expected:
        raise MlperfOptError(f"cannot measure the quality: {len(inputs)} samples and {expected} answers")


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
