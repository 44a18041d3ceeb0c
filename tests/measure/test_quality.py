"""Quality counted by hand, and broken models that must not score."""

import math

import numpy as np
import pytest

from mlperf_opt.errors import ConfigError, MlperfOptError
from mlperf_opt.measure.quality import accuracy, exact_match, nats_per_token

EYE = np.eye(10, dtype=np.float32)


def test_accuracy_counts_the_right_ones():
    targets = np.array([3, 1, 4, 1, 5, 9, 2])
    answers = np.array([3, 1, 4, 0, 5, 9, 0])
    quality = accuracy(lambda x: EYE[x], answers, targets, batch=3)
    assert (quality.metric, quality.value, quality.nan_rows) == ("accuracy", 5 / 7, 0)
    # Wilson, 5 of 7, solved by hand from |p - 5/7| = 1.96 sqrt(p (1 - p) / 7)
    assert (quality.low, quality.high) == pytest.approx((0.3589, 0.9178), abs=1e-4)
    assert quality.correct.tolist() == [True, True, True, False, True, True, False]
    assert quality.outputs.dtype == np.float32
    assert np.array_equal(quality.outputs, EYE[answers])


def test_results_are_read_only():
    quality = accuracy(lambda x: EYE[x], np.arange(4), np.arange(4), batch=4)
    for array in (quality.correct, quality.outputs):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_constant_predictor_scores_the_share_of_its_class():
    targets = np.array([0] * 6 + [1] * 3 + [2])
    for constant, share in enumerate((0.6, 0.3, 0.1)):
        assert accuracy(lambda x, c=constant: EYE[[c] * len(x)], targets, targets, batch=4).value == share


def test_shuffled_labels_score_like_chance():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 10, 4000)
    quality = accuracy(lambda x: EYE[x], truth, rng.permutation(truth), batch=100)
    assert quality.low < 0.1 < quality.high


def test_nan_is_wrong_even_where_argmax_would_hit():
    logits = EYE[:4].copy()
    logits[0, 0] = np.nan  # argmax gives 0, the target
    logits[1, 5] = np.nan
    quality = accuracy(lambda x: logits[x], np.arange(4), np.arange(4), batch=4)
    assert quality.correct.tolist() == [False, False, True, True]
    assert (quality.value, quality.nan_rows) == (0.5, 2)


def test_a_runtime_may_reuse_its_buffer():
    buffer = np.zeros((2, 10), np.float32)

    def predict(x):
        buffer[:] = EYE[x]
        return buffer

    assert accuracy(predict, np.arange(8), np.arange(8), batch=2).value == 1.0


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x: EYE[x][:-1], r"the model gave \(2,\) rows for 3 samples"),
        (lambda x: np.float32(0), "the model gave no rows for 3 samples"),
        (lambda x: EYE[x][:, 0], r"one row of logits a sample, got the shape \(6,\)"),
        (lambda x: EYE[x][:, :3], r"the targets are classes 0\.\.5, but the model has 3 classes"),
    ],
)
def test_wrong_shapes_are_errors(predict, message):
    with pytest.raises(MlperfOptError, match=message):
        accuracy(predict, np.arange(6), np.arange(6), batch=3)


def test_impossible_input_is_refused():
    with pytest.raises(MlperfOptError, match="0 samples and 0 answers"):
        accuracy(lambda x: EYE[x], np.arange(0), np.arange(0), batch=3)
    with pytest.raises(MlperfOptError, match="4 samples and 5 answers"):
        accuracy(lambda x: EYE[x], np.arange(4), np.arange(5), batch=3)
    with pytest.raises(ConfigError, match="batch=0: expected 1 or more"):
        accuracy(lambda x: EYE[x], np.arange(4), np.arange(4), batch=0)


def test_exact_match_needs_every_position():
    prompts = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    answers = prompts[:, ::-1].copy()
    answers[1, 2] = 0
    quality = exact_match(lambda p: p[:, ::-1], prompts, answers, batch=2)
    assert (quality.metric, quality.value) == ("exact_match", 2 / 3)
    assert quality.correct.tolist() == [True, False, True]
    assert np.array_equal(quality.outputs, prompts[:, ::-1])


def test_a_completion_of_another_length_is_an_error():
    with pytest.raises(MlperfOptError, match=r"completions have the shape \(3, 2\), the answers \(3, 3\)"):
        exact_match(lambda p: p[:, :2], np.ones((3, 3), int), np.ones((3, 3), int), batch=2)


def _windows(rng, rows=9, length=5, classes=4):
    logits = rng.standard_normal((rows, length, classes)).astype(np.float32) * 3
    targets = rng.integers(0, classes, (rows, length))
    targets[-1, 2:] = -1
    return logits, targets


def _nats_by_hand(logits, targets):
    """One list of -ln p a window, in Python floats."""
    found = []
    for scores, wanted in zip(logits.tolist(), targets.tolist(), strict=True):
        pairs = [(row, t) for row, t in zip(scores, wanted, strict=True) if t >= 0]
        found.append([math.log(sum(math.exp(x - row[t]) for x in row)) for row, t in pairs])
    return found


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_nats_are_the_mean_over_all_tokens(batch, rng):
    logits, targets = _windows(rng)
    by_hand = _nats_by_hand(logits, targets)
    quality = nats_per_token(lambda x: logits[x[:, 0]], np.arange(9)[:, None], targets, batch)
    assert quality.value == pytest.approx(sum(map(sum, by_hand)) / (8 * 5 + 2), rel=1e-6)
    assert quality.outputs.tolist() == pytest.approx(list(map(sum, by_hand)), rel=1e-6)
    assert (quality.metric, quality.correct, quality.nan_rows) == ("nats_per_token", None, 0)
    assert quality.gain == -quality.value, "less is better"


def test_the_interval_of_nats_is_that_of_the_mean_over_windows(rng):
    """With windows of one length it is the textbook's: mean +- 1.96 s / sqrt(n)."""
    logits, targets = _windows(rng, rows=40)
    targets = np.maximum(targets, 0)
    means = [sum(window) / 5 for window in _nats_by_hand(logits, targets)]
    half = 1.959964 * math.sqrt(sum((m - sum(means) / 40) ** 2 for m in means) / 39 / 40)
    quality = nats_per_token(lambda x: logits[x[:, 0]], np.arange(40)[:, None], targets, 40)
    assert (quality.low, quality.high) == pytest.approx((quality.value - half, quality.value + half), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_logarithm_of_the_classes():
    quality = nats_per_token(
        lambda x: np.zeros((*x.shape, 65), np.float32), np.zeros((3, 4), int), np.eye(3, 4, dtype=int), 2
    )
    assert quality.value == pytest.approx(math.log(65)) and quality.low == pytest.approx(quality.high)


def test_targets_that_are_off_by_one_token_are_noticed():
    """A model that is sure of the next token, measured against the one after it."""
    tokens = np.arange(60).reshape(6, 10) % 7
    sure = np.eye(7, dtype=np.float32) * 20
    right = nats_per_token(lambda x: sure[(x + 1) % 7], tokens, (tokens + 1) % 7, 3)
    wrong = nats_per_token(lambda x: sure[(x + 1) % 7], tokens, tokens, 3)
    assert right.value < 1e-6 and wrong.value > 19


def test_large_logits_are_no_overflow():
    logits = np.float32([[[3e38, -3e38]], [[0, 1e38]]])
    quality = nats_per_token(lambda x: logits[x[:, 0]], np.arange(2)[:, None], np.array([[0], [1]]), 2)
    assert quality.value == 0


def test_windows_with_a_nan_are_counted():
    logits = np.zeros((3, 2, 4), np.float32)
    logits[1, 0, 2] = np.nan
    quality = nats_per_token(lambda x: logits[x[:, 0]], np.arange(3)[:, None], np.zeros((3, 2), int), 3)
    assert quality.nan_rows == 1 and math.isnan(quality.value)


@pytest.mark.parametrize(
    "inputs, targets, batch, text",
    [
        (np.zeros((1, 2), int), np.zeros((1, 2), int), 1, "two windows"),
        (np.zeros((3, 2), int), np.zeros((2, 2), int), 1, "3 samples and 2 answers"),
        (np.zeros((3, 2), int), np.zeros((3, 5), int), 1, "don't fit targets"),
        (np.zeros((3, 2), int), np.full((3, 2), 4), 1, "don't fit targets"),
        (np.zeros((3, 2), int), np.zeros((3, 2), int), 0, "batch=0"),
    ],
)
def test_nats_of_what_does_not_fit_are_refused(inputs, targets, batch, text):
    with pytest.raises(MlperfOptError, match=text):
        nats_per_token(lambda x: np.zeros((*x.shape, 4), np.float32), inputs, targets, batch)
