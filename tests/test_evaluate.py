"""Measuring a model: broken ones are caught, and the numbers are those of the task."""

import dataclasses
import re

import numpy as np
import pytest

from mlperf_opt import evaluate
from mlperf_opt.config import model_settings
from mlperf_opt.data import Split, load_data
from mlperf_opt.evaluate import MeasureSettings, Subject, difference, exactness, is_quantized, measure
from mlperf_opt.graph import Weight
from mlperf_opt.passes import PassContext
from mlperf_opt.passes.fuse import Fuse
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import NUMPY, Runtime, may_flip

FAST = MeasureSettings(seconds=0.02, throughput_batch=64)
ONES = np.ones((2, 3), np.float32)


def _load(model, family, data_name, test):
    data = load_data(data_name)
    graph = model_settings({"name": model, "family": family}).trained()
    return graph, dataclasses.replace(data, test=Split(data.test.inputs[:test], data.test.targets[:test]))


@pytest.fixture(scope="module")
def digits():
    """Return the mlp and 100 test samples."""
    return _load("mlp", "DigitMLP", "digits", 100)


@pytest.fixture(scope="module")
def words():
    """Return the transformer and 30 test samples."""
    return _load("transformer", "MinimalTransformer", "reverse", 30)


def _cached(graph, data, *before):
    for step in (*before, KvCache()):
        graph = step(graph, PassContext(data, 0, NUMPY)).graph
    return graph


# difference


@pytest.mark.parametrize(
    "expected, actual, quantized, fact",
    [
        (ONES, ONES, False, ""),
        (ONES, ONES + np.float32(0.9e-4), False, ""),
        (ONES, ONES + np.float32(1.2e-4), False, "outputs differ by"),
        (ONES * 100, ONES * 100 + np.float32(0.9e-2), False, ""),
        (ONES * 100, ONES * 100 + np.float32(1.2e-2), False, "outputs differ by"),
        (ONES * 0, ONES * 0 + np.float32(0.9e-4), False, ""),
        (ONES, ONES * np.float32(1.04), True, ""),
        (ONES, ONES * np.float32(1.06), True, "outputs differ by"),
        (ONES, ONES[:1], False, r"shape \(1, 3\) instead of \(2, 3\)"),
        (ONES, ONES[0], False, "shape"),
        (ONES, ONES * np.float32(np.nan), False, "not finite"),
        (ONES, np.where(np.eye(2, 3), np.float32(np.inf), ONES), True, "not finite"),
        (np.where(np.eye(2, 3), np.float32(np.inf), ONES), ONES, False, "not finite"),
        (np.where(np.eye(2, 3), np.float32(np.nan), ONES), ONES, False, "not finite"),
    ],
)
def test_difference_of_floats(expected, actual, quantized, fact):
    found = difference(expected, actual, quantized)
    assert re.search(fact, found) if fact else found == ""


def test_one_element_among_many_is_seen():
    expected = np.zeros((50, 20), np.float32)
    actual = expected.copy()
    actual[37, 11] = 0.01
    assert difference(expected, actual, False) == "outputs differ by 0.01, at most 0.0001 is rounding"


@pytest.mark.parametrize("wrong, quantized, ok", [(0, False, True), (1, False, False), (3, True, True), (4, True, False)])
def test_difference_of_tokens(wrong, quantized, ok):
    expected = np.arange(100).reshape(10, 10)
    actual = expected.copy()
    actual.reshape(-1)[:wrong] += 1
    assert (difference(expected, actual, quantized) == "") == ok


# an exact pass that isn't


class Forgetful:
    """A session whose cache drops the third token: it decodes it at the place of the second."""

    def __init__(self, session):
        self.session, self.calls = session, 0

    def prefill(self, tokens, lengths=None):
        return self.session.prefill(tokens, lengths)

    def decode(self, tokens):
        self.calls += 1
        if self.calls == 2:
            self.session.truncate(1)
        return self.session.decode(tokens)


def _forgetful(graph):
    executable = NUMPY.prepare(graph)
    start = executable.start
    executable.start = lambda batch, length: Forgetful(start(batch, length))
    return executable


def test_exactness_catches_a_cache_that_drops_a_token(words):
    graph, data = words
    cached = _cached(graph, data)
    before, after = Subject(graph, NUMPY, data, 1), Subject(cached, NUMPY, data, 1)
    assert exactness(before, after, data) == ""

    after.executable = _forgetful(cached)
    assert "outputs differ by" in exactness(before, after, data)


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_exactness_takes_a_quantized_cache_and_catches_a_broken_one(words, scheme):
    graph, data = words
    quantized = Quant(scheme=scheme)(graph, PassContext(data, 0, NUMPY)).graph
    before, after = (Subject(g, NUMPY, data, 1) for g in (quantized, _cached(quantized, data)))
    assert is_quantized(before.graph) and is_quantized(after.graph)
    assert exactness(before, after, data) == ""

    after.executable = _forgetful(after.graph)
    assert "of the tokens agree" in exactness(before, after, data)


def test_exactness_catches_changed_weights(digits):
    graph, data = digits
    weight = graph.weights["fc2.weight"].values.copy()
    weight[3, 5] += 0.01
    changed = graph.with_weights({"fc2.weight": Weight(weight)})
    before, same, after = (Subject(g, NUMPY, data, 1) for g in (graph, graph, changed))
    assert exactness(before, same, data) == ""
    assert "outputs differ by" in exactness(before, after, data)


# a model whose timed outputs are others


@pytest.mark.parametrize("task", ["digits", "words"])
def test_timed_outputs_are_compared_with_those_of_the_quality_run(request, task):
    graph, data = request.getfixturevalue(task)
    subject = Subject(graph, NUMPY, data, 3)
    assert subject.timed_difference() == "no query was timed"
    for index in (0, 1, 7, 10_000):
        subject.query(index)
    assert subject.timed_difference() == ""
    # 100 samples make 33 whole queries of 3, 30 samples make 10: the index goes round
    assert sorted(subject.timed_outputs) == sorted({0, 1, 7, 10_000 % (33 if task == "digits" else 10)})


@pytest.mark.parametrize("task", ["digits", "words"])
def test_a_model_that_cheats_while_it_is_timed_is_caught(request, task):
    graph, data = request.getfixturevalue(task)
    subject = Subject(graph, NUMPY, data, 2)
    honest, subject.run = subject.run, lambda inputs: subject.quality.outputs[:2]
    subject.query(0)
    assert subject.timed_difference() == "", "its answer to the first query, whatever the query"
    subject.query(4)
    assert subject.timed_difference().startswith("timed query 4 differs from the quality run: ")
    subject.run = honest
    subject.query(4)
    assert subject.timed_difference() == ""


def test_measure_marks_what_is_wrong(digits):
    graph, data = digits
    subject = Subject(graph, NUMPY, data, 1)
    assert measure(subject, subject, data, FAST, 0)[1] == []
    wrong = Subject(graph, NUMPY, data, 1)
    wrong.run = lambda inputs: np.zeros((len(inputs), 10), np.float32)
    faults = measure(wrong, subject, data, FAST, 0)[1]
    assert len(faults) == 1 and faults[0].startswith("timed query")


@pytest.mark.parametrize("seconds, warmup", [(0.5, 0.05), (0.02, 0.02)])
def test_the_warm_up_is_no_longer_than_what_is_timed(digits, monkeypatch, seconds, warmup):
    given = {}
    original = evaluate.time_pair

    def record(*calls, **settings):
        given.update(settings)
        return original(*calls, **{**settings, "seconds": 0.001, "warmup_seconds": 0.0})

    monkeypatch.setattr(evaluate, "time_pair", record)
    subject = Subject(digits[0], NUMPY, digits[1], 1)
    measure(subject, subject, digits[1], dataclasses.replace(FAST, seconds=seconds), 0)
    assert (given["seconds"], given["warmup_seconds"]) == (seconds, warmup)


def test_a_model_of_nan_is_a_fault(digits):
    graph, data = digits
    subject = Subject(graph, NUMPY, data, 1)

    class Nan:
        workspace_bytes, notes = 0, {}

        def __call__(self, inputs):
            return np.full((len(inputs), 10), np.nan, np.float32)

    nan = Runtime("nan", lambda _graph, _options: Nan())
    faults = measure(Subject(graph, nan, data, 1), subject, data, FAST, 0)[1]
    assert any("not finite" in fault for fault in faults)
    assert "100 outputs are not a number" in faults


# what is measured


def test_columns_of_a_classification(digits):
    graph, data = digits
    baseline = Subject(graph, NUMPY, data, 5)
    flipped = graph.weights["fc2.weight"].values[::-1]
    reverse = Subject(graph.with_weights({"fc2.weight": Weight(flipped)}), NUMPY, data, 5)
    columns, faults, _ = measure(reverse, baseline, data, FAST, 0)
    right, wrong = (s.quality.outputs.argmax(axis=1) == data.test.targets for s in (baseline, reverse))
    assert faults == []
    assert columns["quality_metric"] == "accuracy"
    assert columns["quality"] == wrong.mean() < 0.5 < right.mean() == baseline.quality.value
    assert columns["quality_delta"] == pytest.approx(wrong.mean() - right.mean())
    assert (columns["fixed"], columns["broken"]) == ((wrong & ~right).sum(), (right & ~wrong).sum())
    assert columns["quality_ok"] is False
    assert columns["throughput_batch"] == 64 and columns["throughput_per_s"] > 1000
    assert columns["state_bytes"] is None and "token_us" not in columns
    assert columns["peak_activation_bytes"] > 5 * 10 * 4


@pytest.mark.parametrize("drop, ok", [(0.0, True), (0.01, True), (0.02, False)])
def test_quality_ok_is_a_matter_of_max_drop(digits, drop, ok):
    graph, data = digits
    baseline, other = Subject(graph, NUMPY, data, 1), Subject(graph, NUMPY, data, 1)
    other.quality = dataclasses.replace(baseline.quality, value=baseline.quality.value - drop)
    settings = dataclasses.replace(FAST, max_drop=0.015)
    assert measure(other, baseline, data, settings, 0)[0]["quality_ok"] is ok


def test_columns_of_a_completion(words):
    graph, data = words
    baseline = Subject(graph, NUMPY, data, 2)
    cached = Subject(_cached(graph, data), NUMPY, data, 2)
    columns, faults, _ = measure(cached, baseline, data, FAST, 0)
    assert faults == [] and columns["quality_metric"] == "exact_match"
    words_backwards = data.test.inputs[:, :8][:, ::-1]
    assert columns["quality"] == (cached.quality.outputs == words_backwards).all(axis=1).mean() == 1.0
    assert columns["token_us"] > 0 and columns["prefill_us"] > 0
    # 2 layers, keys and values, 2 rows of 9 + 8 - 1 places of width 32, float32; and the positions
    assert columns["state_bytes"] == 2 * 2 * 2 * 16 * 32 * 4 + 2 * 8
    assert baseline.state_bytes() is None


def test_generation_times_first_and_later_tokens_apart(words, monkeypatch):
    graph, data = words
    subject = Subject(graph, NUMPY, data, 1)
    ticks = iter(range(10**9))

    def continuations(_executable, prompts, count):
        assert (prompts.shape, count) == ((1, 9), 8)
        for place in range(count):
            for _ in range(4999 if place == 0 else 999):
                next(ticks)
            yield place

    monkeypatch.setattr(evaluate, "continuations", continuations)
    monkeypatch.setattr(evaluate.time, "perf_counter_ns", lambda: next(ticks))
    assert subject.generation(0.001) == (5.0, 1.0)


def test_the_cache_makes_a_token_cheaper_than_the_prompt(words):
    graph, data = words
    prefill_us, token_us = Subject(_cached(graph, data), NUMPY, data, 16).generation(0.1)
    assert token_us < prefill_us


@pytest.mark.parametrize("task", ["digits", "words"])
def test_a_batch_beyond_the_test_split_is_the_whole_split(request, task):
    graph, data = request.getfixturevalue(task)
    graph = _cached(graph, data) if task == "words" else graph
    subject = Subject(graph, NUMPY, data, 1000)
    assert subject.batch == len(data.test)
    subject.query(0)
    subject.query(5)
    assert list(subject.timed_outputs) == [0] and subject.timed_difference() == ""
    assert len(subject.timed_outputs[0]) == len(data.test)
    assert subject.throughput(1000, 0.01)[1] == len(data.test)
    if task == "words":
        assert subject.state_bytes() == 2 * 2 * 30 * 16 * 32 * 4 + 30 * 8


# which rounding may fall the other way


@pytest.mark.parametrize(
    "model, steps, expected",
    [
        ("digits", [], False),
        ("digits", [Quant()], False),
        ("digits", [Quant(scheme="dynamic")], False),
        ("digits", [Fuse(), Quant(scheme="dynamic")], False),
        ("digits", [Quant(skip=("fc1",))], True),
        ("words", [Quant()], True),
    ],
)
def test_only_a_float_product_before_a_grid_may_flip_a_code(request, model, steps, expected):
    graph, data = request.getfixturevalue(model)
    for step in steps:
        graph = step(graph, PassContext(data, 0, NUMPY)).graph
    assert may_flip(graph) == expected
