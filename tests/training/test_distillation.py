"""Distillation: the loss and its gradient by hand, in float64, and the ends of its settings."""

import math

import numpy as np
import pytest
from training_oracles import central_differences, mean_cross_entropy

from mlperf_opt.training import CROSS_ENTROPY, Distillation


def _softmax(row, temperature):
    exps = [math.exp((x - max(row)) / temperature) for x in row]
    return [x / sum(exps) for x in exps]


def _by_hand(logits, teacher, targets, weight, temperature):
    """(1 - a) CE + a T^2 KL(p || q), means over the rows that count, in Python floats."""
    rows = [place for place, target in enumerate(np.ravel(targets)) if target >= 0]
    soft = 0.0
    for row in rows:
        p, q = (_softmax(scores.reshape(-1, logits.shape[-1])[row].tolist(), temperature) for scores in (teacher, logits))
        soft += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return (1 - weight) * mean_cross_entropy(logits, targets) + weight * temperature**2 * soft / len(rows)


def _closed_form(logits, teacher, targets, weight, temperature):
    """(1 - a) (q1 - onehot) / n + a T (q - p) / n."""
    classes = logits.shape[-1]
    flat, scores, ids = logits.reshape(-1, classes), teacher.reshape(-1, classes), np.ravel(targets)
    gradient, count = np.zeros_like(flat), int((ids >= 0).sum())
    for row in np.flatnonzero(ids >= 0):
        hard = np.array(_softmax(flat[row].tolist(), 1)) - np.eye(classes)[ids[row]]
        p, q = (np.array(_softmax(x[row].tolist(), temperature)) for x in (scores, flat))
        gradient[row] = ((1 - weight) * hard + weight * temperature * (q - p)) / count
    return gradient.reshape(logits.shape)


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 6)])
@pytest.mark.parametrize("weight, temperature", [(0.9, 3.0), (0.5, 1.0), (1.0, 0.5), (0.0, 2.0)])
def test_loss_and_gradient_are_those_by_hand(shape, weight, temperature, rng):
    logits, teacher = rng.standard_normal(shape) * 3, rng.standard_normal(shape) * 3
    targets = rng.integers(0, shape[-1], shape[:-1])
    targets.flat[1] = -1  # has no part in either mean
    objective = Distillation(lambda _x: teacher, weight, temperature, "")
    loss, gradient = objective(logits, targets, (np.zeros(1),))
    assert loss == pytest.approx(_by_hand(logits, teacher, targets, weight, temperature), rel=1e-12)
    expected = _closed_form(logits, teacher, targets, weight, temperature)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-14)
    moved = central_differences(lambda: objective(logits, targets, (np.zeros(1),))[0], logits)
    np.testing.assert_allclose(gradient, moved, rtol=1e-5, atol=1e-8)


def test_a_student_equal_to_its_teacher_has_no_soft_loss(rng):
    logits = rng.standard_normal((4, 3))
    loss, gradient = Distillation(lambda _x: logits, 1.0, 4.0, "")(logits, np.array([0, 1, 2, 0]), (np.zeros(1),))
    assert loss == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(gradient, 0, atol=1e-15)


def test_a_warm_gradient_is_as_large_as_a_cold_one(rng):
    """What T^2 is for: in the limit of a high temperature the gradient is (z - z_teacher) / (n classes)."""
    logits, teacher = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    objective = Distillation(lambda _x: teacher, 1.0, 1e4, "")
    _, gradient = objective(logits, np.array([0, 1, 2]), (np.zeros(1),))
    centred = [x - x.mean(axis=1, keepdims=True) for x in (logits, teacher)]
    np.testing.assert_allclose(gradient, (centred[0] - centred[1]) / (3 * 4), rtol=1e-3, atol=1e-4)


def test_the_teacher_sees_the_same_inputs_and_dtype_stays(rng):
    seen = []

    def teacher(x):
        seen.append(x)
        return np.zeros((2, 3), np.float32)

    inputs = rng.standard_normal((2, 5)).astype(np.float32)
    logits = rng.standard_normal((2, 3)).astype(np.float32)
    _, gradient = Distillation(teacher, 0.7, 2.0, "")(logits, np.array([0, 2]), (inputs,))
    assert seen[0] is inputs and gradient.dtype == np.float32


def test_cross_entropy_alone_is_the_op(rng):
    logits, targets = rng.standard_normal((4, 3)), np.array([0, -1, 2, 1])
    loss, gradient = CROSS_ENTROPY(logits, targets, ())
    assert loss == pytest.approx(mean_cross_entropy(logits, targets), rel=1e-12)
    np.testing.assert_allclose(gradient, _closed_form(logits, logits, targets, 0.0, 1.0), rtol=1e-10, atol=1e-14)
