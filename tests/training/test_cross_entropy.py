"""Cross-entropy as training uses it: leading shapes, extremes, ignored targets, and the mean."""

import numpy as np
import pytest
from training_oracles import central_differences, mean_cross_entropy

from mlperf_opt.errors import GraphError
from mlperf_opt.ops import OPS

LOSS = OPS["cross_entropy"]


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (1, 1), (2, 2, 2, 4)])
def test_loss_and_gradient_for_any_leading_shape(shape, rng):
    logits = rng.standard_normal(shape)
    targets = rng.integers(0, shape[-1], shape[:-1])
    targets.flat[:: len(targets) + 1] = -1
    targets.flat[0] = 0
    loss = LOSS.forward(logits, targets)
    assert loss.shape == () and loss.dtype == np.float64
    assert float(loss) == pytest.approx(mean_cross_entropy(logits, targets), rel=1e-12)
    gradient, none = LOSS.vjp(np.ones(()), loss, logits, targets)
    assert none is None and gradient.shape == shape
    expected = central_differences(lambda: mean_cross_entropy(logits, targets), logits)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-9)
    assert (gradient[targets == -1] == 0).all()


def test_uniform_logits_cost_the_logarithm_of_the_classes():
    assert float(LOSS.forward(np.full((2, 10), 3.0), np.array([0, 9]))) == pytest.approx(2.302585092994046)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_stay_finite(dtype):
    """Right by 1e4: no loss. Wrong by 1e4: a loss of 1e4. Both with a finite gradient."""
    logits = np.array([[1e4, 0, -1e4], [1e4, 0, -1e4]], dtype)
    targets = np.array([0, 1])
    assert float(LOSS.forward(logits, targets)) == 5e3  # the mean of 0 and 1e4
    gradient, _ = LOSS.vjp(np.ones((), dtype), None, logits, targets)
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [0.5, -0.5, 0]])
    assert gradient.dtype == dtype


@pytest.mark.parametrize("copies", [2, 7])
def test_duplicating_the_batch_leaves_the_mean_alone(copies, rng):
    logits, targets = rng.standard_normal((5, 3)), np.array([0, 1, -1, 2, 2])
    many, many_targets = np.concatenate([logits] * copies), np.concatenate([targets] * copies)
    once = float(LOSS.forward(logits, targets))
    assert float(LOSS.forward(many, many_targets)) == pytest.approx(once, rel=1e-12)
    gradient, _ = LOSS.vjp(np.ones(()), None, logits, targets)
    total = LOSS.vjp(np.ones(()), None, many, many_targets)[0].reshape(copies, 5, 3).sum(axis=0)
    np.testing.assert_allclose(total, gradient, rtol=1e-12)


@pytest.mark.parametrize("targets", [np.full(3, -1), np.full(0, -1)])
def test_no_target_that_counts_is_an_error(targets):
    with pytest.raises(GraphError, match="no target counts"):
        LOSS.forward(np.zeros((len(targets), 4)), targets)


@pytest.mark.parametrize("wrong", [4, -2, 100])
def test_a_class_that_does_not_exist_is_an_error(wrong):
    with pytest.raises(GraphError, match=r"class ids must be 0\.\.3"):
        LOSS.forward(np.zeros((2, 4)), np.array([0, wrong]))
