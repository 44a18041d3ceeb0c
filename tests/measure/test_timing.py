"""Timing against a clock that only moves when a fake callable says so."""

import gc
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.errors import ConfigError, MlperfOptError
from mlperf_opt.measure.timing import noise_factor, time_pair, verdict


class FakeClock:
    """Nanoseconds that pass only inside callables, plus ``tick`` at every look."""

    def __init__(self, tick=0):
        self.now = 0.0
        self.tick = tick

    def __call__(self):
        self.now += self.tick
        return self.now

    def takes(self, cost):
        """Return a callable whose query takes ``cost(query)`` nanoseconds."""

        def call(query):
            self.now += cost(query)

        return call


def pair(clock, baseline, candidate, seconds=0.1, seed=0, **settings):
    return time_pair(clock.takes(baseline), clock.takes(candidate), seconds=seconds, seed=seed, clock=clock, **settings)


def test_half_the_time_is_a_speedup_of_two():
    result = pair(FakeClock(), lambda _: 20_000, lambda _: 10_000)
    assert (result.speedup, result.speedup_low, result.speedup_high) == (2.0, 2.0, 2.0)
    assert (result.noise_low, result.noise_high) == (1.0, 1.0)
    assert (result.p50_us, result.p90_us, result.p99_us) == (10.0, 10.0, 10.0)
    assert result.harness_us == 0
    assert result.notes == ()


def test_a_machine_that_slows_down_does_not_change_the_ratio():
    # Tenfold slower at the end than at the start: timed one after the other, the ratio would be far from 2.
    clock = FakeClock()

    def slower(cost):
        return lambda _: cost * (1 + clock.now / 2e7)

    result = pair(clock, slower(20_000), slower(10_000), seconds=0.2, warmup_seconds=0.001)
    assert result.p90_us > 5 * 10
    assert result.speedup == pytest.approx(2.0, rel=0.1)
    assert verdict(result.speedup_low, result.speedup_high, result.noise_low, result.noise_high) == "faster"


def test_noise_alone_is_no_difference():
    rng = np.random.default_rng(0)
    clock = FakeClock()
    # slow queries: few a window, so the noise of a window doesn't average out
    result = pair(clock, lambda _: 1e6 * rng.uniform(0.5, 1.5), lambda _: 1e6 * rng.uniform(0.5, 1.5), seconds=0.3)
    assert result.noise_low < 1 < result.noise_high
    assert noise_factor(result.noise_low, result.noise_high) > 1.02
    assert verdict(result.speedup_low, result.speedup_high, result.noise_low, result.noise_high) == "within noise"


def test_rare_interruptions_do_not_move_the_ratio():
    rng = np.random.default_rng(0)

    def spiky(cost):
        return lambda _: cost * (100 if rng.random() < 0.03 else 1)

    result = pair(FakeClock(), spiky(30_000), spiky(10_000), seconds=0.5)
    assert result.speedup == pytest.approx(3.0, rel=0.02)
    assert result.p50_us == 10.0
    assert result.p99_us == 1000.0


def test_the_warm_up_is_not_counted():
    calls = itertools.count()
    # 5 ms in the first five calls, all of them in the warm-up of 50 ms
    result = pair(FakeClock(), lambda _: 10_000, lambda _: 5e6 if next(calls) < 5 else 10_000, seconds=0.2)
    assert (result.p50_us, result.p99_us, result.speedup) == (10.0, 10.0, 1.0)


def test_the_time_is_kept():
    clock = FakeClock()
    pair(clock, lambda _: 10_000, lambda _: 10_000, seconds=1, warmup_seconds=0.1)
    assert 1.2e9 <= clock.now < 1.22e9


def test_a_short_time_holds_six_rounds_of_shorter_windows():
    clock = FakeClock()
    result = pair(clock, lambda _: 10_000, lambda _: 5_000, seconds=0.009, warmup_seconds=0.001)
    # 9 ms are 18 windows of 0.5 ms
    assert (result.rounds, result.n, result.speedup) == (6, 6 * 100, 2.0)
    assert clock.now == 2 * 1e6 + 9e6


def test_a_slow_model_gets_six_rounds_and_says_what_is_missing():
    result = pair(FakeClock(), lambda _: 2e9, lambda _: 1e9)
    assert (result.rounds, result.n, result.speedup) == (6, 6, 2.0)
    assert (result.p90_us, result.p99_us) == (None, None)
    assert result.notes == ("p90 needs 64 queries, got 6", "p99 needs 662 queries, got 6")


def test_the_harness_is_measured_and_named_where_it_matters():
    # two looks at the clock: one tick lies inside a latency
    result = pair(FakeClock(tick=50), lambda _: 200, lambda _: 100, seconds=0.01, warmup_seconds=0.001)
    assert (result.harness_us, result.p50_us) == (0.05, 0.15)
    assert result.notes == ("the timing itself is 33% of the latency (0.05 of 0.15 us)",)


def test_windows_take_every_order_and_get_the_same_queries():
    clock = FakeClock()
    log = []

    def recorder(who):
        def call(query):
            log.append((who, query))
            clock.now += 1e6

        return call

    time_pair(recorder("A"), recorder("B"), seconds=0.037, seed=0, warmup_seconds=0, clock=clock)
    rounds = np.array(log[6:], dtype=object).reshape(-1, 3, 2, 2)  # round, window, query of 1 ms, (who, query)
    assert len(rounds) == 7
    rounds = rounds[:6]
    places = [list(one[:, 0, 0]).index("B") for one in rounds]
    assert sorted(places) == [0, 0, 1, 1, 2, 2]
    for one in rounds:
        assert len({tuple(window[:, 1]) for window in one}) == 1
    assert len(set(rounds[:, 0, :, 1].ravel())) > 6


def test_the_seed_decides_the_queries():
    def queries(seed):
        clock, seen = FakeClock(), []

        def call(query):
            seen.append(query)
            clock.now += 1e6

        time_pair(call, call, seconds=0.01, seed=seed, clock=clock)
        return seen

    assert queries(1) == queries(1)
    assert queries(1) != queries(2)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_rests_and_is_restored(enabled):
    clock = FakeClock()
    states = set()

    def cost(_):
        states.add(gc.isenabled())
        return 1e6

    def breaks(_):
        raise ZeroDivisionError

    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        pair(clock, cost, cost, seconds=0.01)
        assert gc.isenabled() is enabled
        with pytest.raises(ZeroDivisionError):
            pair(clock, cost, breaks)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert states == {False}


@pytest.mark.parametrize(
    ("clock", "message"),
    [
        (lambda: 0, "the clock stands still"),
        (lambda: math.nan, "runs backwards or gives no number"),
        (itertools.count(10**12, -1).__next__, "runs backwards or gives no number"),
    ],
    ids=["frozen", "nan", "backwards"],
)
def test_a_clock_that_lies_is_found_out(clock, message):
    with pytest.raises(MlperfOptError, match=message):
        time_pair(lambda _: None, lambda _: None, seconds=0.01, seed=0, clock=clock)


def test_a_clock_too_coarse_for_the_query_is_found_out():
    looks = itertools.count()
    with pytest.raises(MlperfOptError, match="shorter than a tick of the clock"):
        time_pair(
            lambda _: None, lambda _: None, seconds=0.01, seed=0, warmup_seconds=0, clock=lambda: next(looks) // 100 * 1000
        )


@pytest.mark.parametrize(
    ("settings", "message"), [({"seconds": 0}, "seconds=0"), ({"warmup_seconds": -1}, "warmup_seconds=-1")]
)
def test_times_must_make_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        pair(FakeClock(), lambda _: 1, lambda _: 1, **settings)


def test_the_real_clock_sees_twice_the_work():
    table = np.ones((200, 200), np.float32)

    def once(query):
        return table @ table[:, query % 200]

    def thrice(query):
        return once(query), once(query), once(query)

    result = time_pair(thrice, once, seconds=0.15, seed=0)
    assert 1.8 < result.speedup < 4.5
    assert result.speedup_low <= result.speedup <= result.speedup_high
    assert 0 < result.harness_us < result.p50_us <= result.p90_us


@pytest.mark.parametrize(
    ("speedup", "noise", "expected"),
    [
        ((1.03, 1.10), (0.99, 1.01), "faster"),
        ((1.01, 1.10), (0.99, 1.01), "within noise"),  # reaches below 2 %
        ((1.03, 1.10), (0.95, 1.01), "within noise"),  # 1 / 0.95 = 1.053
        ((1.03, 1.10), (0.99, 1.05), "within noise"),
        ((0.90, 0.97), (0.99, 1.01), "slower"),
        ((0.90, 0.985), (0.99, 1.01), "within noise"),
        ((0.90, 0.97), (0.99, 1.05), "within noise"),
        ((1.0, 1.0), (1.0, 1.0), "within noise"),
    ],
)
def test_verdict_needs_the_whole_interval_beyond_noise_and_two_percent(speedup, noise, expected):
    assert verdict(*speedup, *noise) == expected


positive = st.floats(0.1, 10)


@given(positive, positive, positive, positive)
def test_verdict_mirrors_when_the_two_change_places(a, b, c, d):
    (low, high), (noise_low, noise_high) = sorted((a, b)), sorted((c, d))
    there = verdict(low, high, noise_low, noise_high)
    back = verdict(1 / high, 1 / low, noise_low, noise_high)
    mirror = {"faster": "slower", "slower": "faster", "within noise": "within noise"}
    edge = noise_factor(noise_low, noise_high)
    if not any(math.isclose(x, y, rel_tol=1e-9) for x in (low, high) for y in (edge, 1 / edge)):
        assert back == mirror[there]


def test_verdict_refuses_nan_and_disorder():
    with pytest.raises(ValueError, match="expected positive numbers in order"):
        verdict(math.nan, 1, 1, 1)
    with pytest.raises(ValueError, match="expected positive numbers in order"):
        verdict(2, 1, 1, 1)
    with pytest.raises(ValueError, match="expected positive numbers"):
        verdict(1, 1, math.nan, 1)
