"""Sampling by the definition of each setting."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from mlperf_opt.errors import ConfigError, SessionError
from mlperf_opt.sampling import SamplingSettings, choose

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3]))
rows_of_logits = hn.arrays(np.float32, st.integers(1, 20), elements=st.floats(-50, 50, width=32))


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"temperature": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares: 1, 16, 4, 9
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 1.0, "top_p": 0.39}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.75}, [0, 4 / 7, 0, 3 / 7]),  # of 9: 4 + 3 are 0.78
    ],
)
def test_probabilities_by_hand(settings, expected):
    assert SamplingSettings(**settings).probabilities(LOGITS[None])[0].tolist() == pytest.approx(expected)


@given(rows_of_logits, st.just(0.0) | st.floats(0.01, 5), st.integers(0, 25), st.floats(0.01, 1))
def test_probabilities_sum_to_one_and_keep_the_most_likely(logits, temperature, top_k, top_p):
    found = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p).probabilities(logits[None])[0]
    assert math.isclose(found.sum(), 1, rel_tol=1e-9) and (found >= 0).all()
    assert found[logits.argmax()] == found.max() > 0
    assert (found > 0).sum() <= (top_k or len(logits))


def test_of_equal_logits_exactly_k_are_kept():
    found = SamplingSettings(top_k=3).probabilities(np.zeros((1, 8), np.float32))[0]
    assert found.tolist() == pytest.approx([1 / 3] * 3 + [0] * 5)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    settings, count = SamplingSettings(temperature=1.0), 20_000
    generators = [np.random.default_rng(0)] * count
    drawn = choose(settings, np.tile(LOGITS, (count, 1)), generators)
    expected = count * np.exp(LOGITS)
    chi_square = float(((np.bincount(drawn, minlength=4) - expected) ** 2 / expected).sum())
    assert chi_square < 16.3, "99.9 % of chi-square with 3 degrees of freedom"


def test_what_is_cut_off_is_never_drawn():
    drawn = choose(SamplingSettings(top_k=2), np.tile(LOGITS, (2000, 1)), [np.random.default_rng(1)] * 2000)
    assert set(drawn.tolist()) == {1, 3}


def test_rows_of_any_size_are_drawn_each_by_itself():
    found = SamplingSettings(temperature=1.0).probabilities(np.array([[0.0, 1.0], [1000.0, 1001.0], [-1000.0, -1001.0]]))
    likely = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(found, [[1 - likely, likely], [1 - likely, likely], [likely, 1 - likely]])


def test_what_comes_after_top_p_is_reached_is_cut_off():
    logits = np.log(np.array([[0.25, 0.5, 0.25]]))
    assert SamplingSettings(temperature=1.0, top_p=0.5).probabilities(logits).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("wrong", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_from_what_is_not_finite_nothing_is_drawn(wrong):
    rows = np.array([[0.0, 1.0], wrong])
    with np.errstate(invalid="ignore"), pytest.raises(SessionError, match="outputs are not finite"):
        choose(SamplingSettings(), rows, [np.random.default_rng(0)] * 2)


def test_temperature_zero_takes_the_first_of_the_most_likely():
    assert choose(SamplingSettings(temperature=0.0), np.array([[1, 3, 3], [2, 0, 1]]), []).tolist() == [1, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 0},
        {"temperature": -1.0},
        {"temperature": 1e-9},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
)
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SamplingSettings(**wrong)
