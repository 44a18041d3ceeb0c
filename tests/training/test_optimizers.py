"""Optimizers and schedule against recurrences written out here."""

import math

import numpy as np
import pytest

from mlperf_opt.training import SGD, Adam, clip_by_global_norm, cosine


def moved(optimizer, grads, lr=0.1, start=1.0):
    weight = np.array([start], np.float32)
    slots = optimizer.init(weight)
    for step, grad in enumerate(grads, start=1):
        optimizer.update(weight, np.array([grad], np.float32), slots, lr, step)
    assert weight.dtype == np.float32
    return float(weight[0])


def test_sgd_with_momentum():
    # v: 2, then 0.9 * 2 + 1 = 2.8; w: 1 - 0.2 - 0.28
    assert moved(SGD(momentum=0.9), [2.0, 1.0]) == pytest.approx(0.52, rel=1e-6)


def test_adam_takes_steps_of_the_learning_rate_on_a_constant_gradient():
    # m_hat = g and v_hat = g^2 at every step, so each moves by lr
    assert moved(Adam(), [5.0, 5.0, 5.0]) == pytest.approx(0.7, abs=1e-5)


def test_adam_by_hand_on_two_gradients():
    m, v = 0.1 * 1 * 0.9 + 0.1 * 3, 0.001 * 1 * 0.999 + 0.001 * 9
    second = 0.1 * (m / (1 - 0.81)) / math.sqrt(v / (1 - 0.999**2))
    assert moved(Adam(), [1.0, 3.0]) == pytest.approx(1 - 0.1 - second, rel=1e-5)


def test_decoupled_decay_shrinks_the_weight_itself():
    assert moved(Adam(weight_decay=0.5, decoupled=True), [0.0]) == pytest.approx(0.95, rel=1e-6)
    # as L2 it is a gradient of 0.5, which Adam normalises to a whole step
    assert moved(Adam(weight_decay=0.5), [0.0]) == pytest.approx(0.9, rel=1e-5)


@pytest.mark.parametrize(
    "shape, order", [((300, 784), "C"), ((300, 784), "F"), ((40_000,), "C"), ((2, 50_000), "C"), ((0, 3), "C")]
)
@pytest.mark.parametrize("optimizer", [Adam(), Adam(weight_decay=0.1), Adam(weight_decay=0.1, decoupled=True)])
def test_a_large_weight_moves_like_each_of_its_numbers(shape, order, optimizer, rng):
    """An update goes block by block; none may be left out or moved twice, whatever the order in memory."""
    weight = np.array(rng.standard_normal(shape), np.float32, order=order)
    grads = [rng.standard_normal(shape).astype(np.float32) for _ in range(2)]
    numbers, slots = weight.flatten()[::997], optimizer.init(weight)
    alone = optimizer.init(numbers)
    for step, grad in enumerate(grads, start=1):
        optimizer.update(weight, grad, slots, 0.01, step)
        optimizer.update(numbers, grad.flatten()[::997], alone, 0.01, step)
    np.testing.assert_array_equal(weight.flatten()[::997], numbers)
    for name, slot in slots.items():
        np.testing.assert_array_equal(slot.flatten()[::997], alone[name])


@pytest.mark.parametrize("optimizer", [SGD(), Adam(), Adam(decoupled=True, weight_decay=0.01)])
def test_each_finds_the_bottom_of_a_parabola(optimizer):
    weight = np.array([4.0, -3.0], np.float32)
    slots = optimizer.init(weight)
    for step in range(1, 601):
        optimizer.update(weight, 2 * weight, slots, 0.02, step)
    np.testing.assert_allclose(weight, 0, atol=0.05)


def test_clipping_limits_the_joint_norm_and_keeps_the_direction():
    grads = {"a": np.array([3.0]), "b": np.array([4.0])}
    assert clip_by_global_norm(grads, 1.0) == pytest.approx(5.0)
    np.testing.assert_allclose([grads["a"][0], grads["b"][0]], [0.6, 0.8])
    assert clip_by_global_norm(grads, 2.0) == pytest.approx(1.0)
    np.testing.assert_allclose(grads["a"], [0.6])


@pytest.mark.parametrize("step, rate", [(5, 0.5), (10, 1.0), (60, 0.5), (110, 0.0)])
def test_the_schedule_rises_and_falls(step, rate):
    assert cosine(step, total=110, warmup=10, peak=1.0) == pytest.approx(rate, abs=1e-9)


def test_the_schedule_without_warm_up_starts_near_its_peak():
    assert cosine(1, total=100, warmup=0, peak=1.0, floor=0.2) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 100)))


def test_a_stable_part_stands_between_rise_and_fall():
    def rates(steps):
        return [cosine(step, total=100, warmup=10, peak=1.0, floor=0.3, stable=50) for step in steps]

    assert rates((5, 10, 11, 60)) == [0.5, 1.0, 1.0, 1.0]
    assert rates((80, 100)) == pytest.approx([0.65, 0.3])  # half way down, and the end
