"""Comparing two runs: pairs, verdicts and gates, with numbers worked out by hand."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.errors import ConfigError
from mlperf_opt.records import to_row
from mlperf_opt.report.compare import METRICS, Delta, changed_settings, compare, compare_grid, fail_on, unmatched


def frame(*records, **extra):
    return pd.DataFrame([{**to_row(record), **extra} for record in records]).convert_dtypes()


@pytest.fixture
def delta(make_record):
    """Return a function: one metric of one step, from the fields of both sides."""

    def of(metric, before, after):
        found = compare(frame(make_record(**before)), frame(make_record(**after)))
        assert [one.metric for one in found] == list(METRICS)
        return next(one for one in found if one.metric == metric)

    return of


def quality(value, half=0.016, metric="accuracy"):
    return {"quality_metric": metric, "quality": value, "quality_low": value - half, "quality_high": value + half}


def speed(value, half=0.01, noise=0.01):
    return {
        **{"speedup": value, "speedup_low": value - half, "speedup_high": value + half},
        **{"noise_low": 1 - noise, "noise_high": 1 + noise},
    }


@pytest.mark.parametrize(
    ("before", "after", "difference", "verdict"),
    [
        # the half-widths are 0.016, so a difference counts from hypot(0.016, 0.016) = 0.0226
        (quality(0.95), quality(0.95), 0.0, "same"),
        (quality(0.95), quality(0.928), -0.022, "within noise"),
        (quality(0.95), quality(0.927), -0.023, "worse"),
        (quality(0.927), quality(0.95), 0.023, "better"),
        # fewer nats are better
        (quality(1.5, metric="nats_per_token"), quality(1.4, metric="nats_per_token"), 0.1, "better"),
        ({"quality_metric": "accuracy", "quality": 0.9}, quality(0.5), -0.4, None),
    ],
)
def test_quality_is_judged_by_both_intervals(delta, before, after, difference, verdict):
    found = delta("quality", before, after)
    assert found.delta == pytest.approx(difference)
    assert found.ratio == pytest.approx(after["quality"] / before["quality"])
    assert found.verdict == verdict


def test_quality_on_different_splits_is_not_compared_and_no_gate_opens(make_record):
    before, after = make_record(**quality(0.95)), make_record(**quality(0.99), split="calibration")
    deltas = compare(frame(before), frame(after))
    found = deltas[0]
    assert (found.metric, found.delta, found.ratio, found.verdict) == ("quality", None, None, None)
    assert found.note == "counted on different splits: test and calibration"
    assert fail_on("quality_delta<-0.01", deltas) == [
        "mlp/digits quant: quality_delta can't be checked: counted on different splits: test and calibration"
    ]


@pytest.mark.parametrize("metric", ["weights_bytes", "file_bytes"])
@pytest.mark.parametrize(("after", "verdict"), [(1000, "same"), (999, "better"), (1001, "worse")])
def test_one_byte_is_a_difference(delta, metric, after, verdict):
    found = delta(metric, {metric: 1000}, {metric: after})
    assert (found.delta, found.ratio, found.verdict) == (after - 1000, after / 1000, verdict)


def test_sparsity_is_exact_and_may_start_at_zero(delta):
    found = delta("sparsity", {"sparsity": 0.0}, {"sparsity": 0.5})
    assert (found.delta, found.ratio, found.verdict) == (0.5, None, "better")


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (speed(1.5), speed(1.5), "same"),
        (speed(1.5), speed(2.0), "better"),
        (speed(2.0), speed(1.5), "worse"),
        (speed(1.5, half=0.3), speed(2.0, half=0.3), "within noise"),  # the intervals overlap
        (speed(1.5, half=0.001), speed(1.52, half=0.001), "within noise"),  # 1.3 %
        (speed(1.5), speed(2.0, noise=0.3), "within noise"),  # 1 / 0.7 = 1.43 > 1.33
        (speed(1.5, noise=0.3), speed(2.0), "within noise"),
        ({"speedup": 1.5}, speed(2.0), None),
    ],
)
def test_speed_is_judged_by_intervals_and_both_noises(delta, before, after, verdict):
    assert delta("speedup", before, after).verdict == verdict


def test_a_latency_gets_no_verdict(delta):
    found = delta("latency_p50_us", {"latency_p50_us": 10.0}, {"latency_p50_us": 5.0})
    assert (found.delta, found.ratio, found.verdict) == (-5.0, 0.5, None)


@pytest.mark.parametrize(("key", "value"), [("runtime", "compiled"), ("threads", 2), ("batch", 32)])
def test_speeds_under_other_conditions_are_not_compared(delta, key, value):
    found = delta("speedup", speed(1.5), {**speed(2.0), key: value})
    assert (found.delta, found.ratio, found.verdict) == (None, None, None)
    assert found.note.startswith("timed differently: ")
    assert f"{key} " in found.note
    assert delta("weights_bytes", {"weights_bytes": 2}, {"weights_bytes": 1, key: value}).verdict == "better"


def test_different_quality_metrics_are_not_compared(delta):
    found = delta("quality", quality(0.9), quality(0.9, metric="exact_match"))
    assert (found.verdict, found.note) == (None, "different metrics: accuracy and exact_match")


def test_what_one_side_lacks_has_no_verdict(delta):
    found = delta("quality", quality(0.9), {})
    assert (found.after, found.delta, found.verdict, found.note) == (None, None, None, "not measured on the second side")
    assert delta("quality", {}, quality(0.9)).note == "not measured on the first side"
    assert delta("quality", {}, {}).note == ""


def steps(deltas):
    return list(dict.fromkeys(one.step for one in deltas))


def test_steps_in_common_are_paired_by_name(make_record):
    before = frame(make_record("baseline"), make_record("quant"), make_record("prune"))
    after = frame(make_record("baseline"), make_record("prune"), make_record("fuse"))
    assert steps(compare(before, after)) == ["mlp/digits baseline", "mlp/digits prune"]
    assert unmatched(before, after) == ["only on the first side: mlp quant", "only on the second side: mlp fuse"]
    assert unmatched(before, before) == []


def test_what_is_left_over_names_its_job(make_record):
    """Each job on its own: 'mlp quant' of one job is another step than that of the next."""
    before = pd.concat([frame(make_record("quant"), make_record("prune"), job=job) for job in ("0", "1", "2")])
    after = frame(make_record("quant"), job="1")
    assert unmatched(before, after) == [
        "only on the first side: job 0: mlp quant, prune; job 1: mlp prune; job 2: mlp quant, prune"
    ]


def test_settings_that_changed_are_named(make_record):
    before = frame(make_record("baseline"), make_record("prune", settings='{"sparsity":0.5,"scope":"global","skip":[]}'))
    after = frame(make_record("baseline"), make_record("prune", settings='{"sparsity":0.9,"scope":"global","skip":["fc1"]}'))
    assert changed_settings(before, after) == ["mlp/digits prune: sparsity 0.5 and 0.9, skip [] and ['fc1']"]
    assert changed_settings(before, before) == []
    jobs = (pd.concat([frame(make_record("prune", settings=text), job="3")]) for text in ('{"a":1}', '{"b":1}'))
    assert changed_settings(*jobs) == ["job 3: mlp/digits prune: a 1 and None, b None and 1"]


@pytest.mark.parametrize("text", ["no json", "[1]", "3", ""])
def test_settings_that_are_no_mapping_are_compared_as_they_are(make_record, text):
    before, after = frame(make_record(settings=text)), frame(make_record(settings='{"a":1}'))
    assert len(changed_settings(before, after)) == 1 and changed_settings(before, before) == []


def test_another_pass_of_the_same_name_has_other_settings_anyway(make_record):
    before = frame(make_record("step", pass_="prune", settings='{"sparsity":0.5}'))
    after = frame(make_record("step", pass_="quant", settings='{"dtype":"int8"}'))
    assert changed_settings(before, after) == []


def test_the_last_steps_are_paired_where_no_name_is_in_common(make_record):
    before = frame(make_record("a"), make_record("b"))
    after = frame(make_record("c"), make_record("d"))
    assert steps(compare(before, after)) == ["mlp/digits b -> d"]


def test_models_are_never_mixed(make_record):
    before = frame(make_record(model="mlp"), make_record(model="cnn"))
    after = frame(make_record(model="cnn"), make_record(model="cnn", data="mnist"))
    assert steps(compare(before, after)) == ["cnn/digits quant"]
    with pytest.raises(ConfigError, match="one side has mlp on digits, the other cnn on digits"):
        compare(frame(make_record(model="mlp")), frame(make_record(model="cnn")))


def test_jobs_are_paired_by_number_and_a_run_with_every_job(make_record):
    jobs = pd.concat([frame(make_record(), job="0"), frame(make_record(), job="1")])
    assert steps(compare(jobs, jobs)) == ["job 0: mlp/digits quant", "job 1: mlp/digits quant"]
    assert (
        steps(compare(frame(make_record()), jobs))
        == steps(compare(jobs, frame(make_record())))
        == steps(compare(jobs, jobs))
    )
    assert unmatched(jobs, frame(make_record())) == []
    with pytest.raises(ConfigError, match=r"mlp on digits \(job 0\), the other mlp on digits \(job 7\)"):
        compare(frame(make_record(), job="0"), frame(make_record(), job="7"))


def test_two_runs_in_one_file_are_refused(make_record):
    with pytest.raises(ConfigError, match="mlp quant stands there twice"):
        compare(frame(make_record(), make_record()), frame(make_record()))


def one(metric="quality", **fields):
    return Delta(
        **{
            "step": "mlp/digits quant",
            "metric": metric,
            "before": 0.9,
            "after": 0.88,
            "delta": -0.02,
            "ratio": 0.98,
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("expression", "fails"),
    [
        ("quality_delta<-0.01", True),
        ("quality_delta<-0.02", False),
        ("quality_delta<=-0.02", True),
        (" quality_delta  >  -1e-1 ", True),
        ("quality_delta>=0", False),
        ("quality_ratio<.99", True),
        ("quality_ratio<+.5", False),
    ],
)
def test_gates_close_when_the_expression_holds(expression, fails):
    assert bool(fail_on(expression, [one()])) is fails


def test_a_gate_says_which_step_and_value():
    assert fail_on("quality_delta<-0.01", [one(), one("weights_bytes", before=1)]) == [
        "mlp/digits quant: quality_delta = -0.02, and < -0.01 was to fail"
    ]


def test_a_lost_measurement_closes_the_gate():
    lost = one(after=None, delta=None, ratio=None, note="not measured on the second side")
    assert fail_on("quality_delta<-0.01", [lost]) == [
        "mlp/digits quant: quality_delta can't be checked: not measured on the second side"
    ]
    zero = one("sparsity", before=0.0, after=0.5, delta=0.5, ratio=None)
    assert fail_on("sparsity_ratio<1", [zero]) == ["mlp/digits quant: sparsity_ratio can't be checked: the first side is 0"]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("qualty_delta<0", "unknown name 'qualty_delta'; did you mean 'quality_delta'"),
        ("quality<0", "unknown name 'quality'; did you mean 'quality_"),
        ("quality_delta==0", "expected a name, one of"),
        ("quality_delta<", "expected a name, one of"),
        ("quality_delta<nan", "expected a name, one of"),
        ("quality_delta<1;import os", "expected a name, one of"),
        ("__import__('os')<1", "expected a name, one of"),
        ("speedup_ratio<1", "nothing to check, speedup was not measured on the first side"),
    ],
)
def test_wrong_gates_are_refused(expression, message):
    with pytest.raises(ConfigError, match=message):
        fail_on(expression, [one()])


@given(st.text(max_size=30) | st.from_regex(r"quality_delta(<|<=|>|>=)-?[0-9]{1,400}", fullmatch=True))
def test_any_gate_is_answered_or_refused(expression):
    try:
        assert fail_on(expression, [one()]) in ([], fail_on(expression, [one()]))
    except ConfigError as error:
        assert "--fail-on" in str(error)


def test_the_grid_leaves_out_what_nobody_measured(make_record):
    before = frame(make_record(**quality(0.95), weights_bytes=9640, latency_p50_us=10.0, **speed(1.0)))
    after = frame(make_record(**quality(0.95), weights_bytes=2500, latency_p50_us=5.0, **speed(2.0)))
    grid = compare_grid(compare(before, after))
    assert grid.rows == (
        ("mlp/digits quant", "quality", "0.950", "0.950", "0.000", "1.000", "same"),
        ("", "weights_bytes", "9.64 kB", "2.50 kB", "-7.14 kB", "0.259", "better"),
        ("", "speedup", "1.00x", "2.00x", "+1.000", "2.000", "better"),
        ("", "latency_p50_us", "10.0 us", "5.00 us", "-5.00 us", "0.500", "-"),
    )


def test_the_quality_rule_is_the_two_proportion_interval():
    # 95 of 100 against 85 of 100 differ by 0.1; standard error sqrt(.95*.05/100 + .85*.15/100) = 0.0418, times 1.96 = 0.082
    assert math.hypot(1.96 * math.sqrt(0.95 * 0.05 / 100), 1.96 * math.sqrt(0.85 * 0.15 / 100)) == pytest.approx(
        0.082, abs=5e-4
    )
