"""Quality counted by hand, and broken models that must not score."""

import numpy as np
import pytest

from mlperf_opt.errors import ConfigError, MlperfOptError
from mlperf_opt.measure.quality import accuracy, exact_match

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
