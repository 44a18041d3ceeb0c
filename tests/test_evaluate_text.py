"""A text is measured in nats, through the cache where there is one; what is broken shows in a named column or fault."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_opt.data import Dataset, Split, Stream
from mlperf_opt.data.tokenizer import CharTokenizer
from mlperf_opt.evaluate import MeasureSettings, Subject, measure, text_note, text_quality
from mlperf_opt.measure import Quality
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.ops import OPS
from mlperf_opt.passes import PassContext
from mlperf_opt.passes.calibration import calibrate
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import COMPILED, NUMPY
from mlperf_opt.training import TrainSettings, train

FAST = MeasureSettings(seconds=0.02, throughput_batch=4)
SYMBOLS = "abcdefg"


def _text():
    """Each letter is one or two letters behind the one before it, with chances of 0.8 and 0.2."""
    steps = 1 + (np.random.default_rng(2).random(4000) < 0.2)
    tokens = np.cumsum(steps) % 7
    held_out = [
        Split(tokens[a:b].reshape(-1, 8), tokens[a + 1 : b + 1].reshape(-1, 8)) for a, b in ((3000, 3400), (3400, 3800))
    ]
    tokenizer = CharTokenizer(SYMBOLS)
    return Dataset("count", "language", Stream(tokens[:3000], 8), *held_out, prompt=3, answer=5, tokenizer=tokenizer)


ENTROPY = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))


@pytest.fixture(scope="module")
def trained():
    network = MinimalTransformer(vocabulary=7, context=8, layers=1, dim=16, heads=2, hidden=32, positions="rotary")
    data = _text()
    settings = TrainSettings(epochs=6, steps=50, batch=16, lr=0.01, optimizer="adamw", clip=1.0)
    with np.errstate(under="ignore"):
        return train(network.build("count", np.random.default_rng(0)), data, settings, seed=0).graph, data


def _after(graph, data, *steps):
    for step in steps:
        graph = step(graph, PassContext(data, 0, NUMPY)).graph
    return graph


def test_a_trained_network_comes_near_the_entropy_of_the_source(trained):
    quality = Subject(trained[0], NUMPY, trained[1], 1).quality
    assert quality.metric == "nats_per_token"
    assert ENTROPY - 0.1 < quality.value < ENTROPY + 0.1 and quality.low < quality.value < quality.high


@pytest.mark.parametrize("runtime", [NUMPY, COMPILED], ids=["numpy", "compiled"])
def test_nats_through_the_cache_are_those_without(trained, runtime):
    graph, data = trained
    plain = text_quality(runtime.prepare(graph), data.test)
    cached = text_quality(runtime.prepare(_after(graph, data, KvCache())), data.test)
    np.testing.assert_allclose(cached.outputs, plain.outputs, rtol=1e-4, atol=1e-3)


def test_nats_of_a_cached_graph_are_measured_by_decoding(trained, monkeypatch):
    """Sabotage: each row is answered with another row's logits once it is past its first token."""
    graph, data = trained
    cached = NUMPY.prepare(_after(graph, data, KvCache()))
    healthy = text_quality(cached, data.test).value

    start = type(cached).start

    def shuffled(executable, batch, length):
        session = start(executable, batch, length)
        decode = session.decode
        session.decode = lambda tokens: decode(tokens)[::-1]
        return session

    monkeypatch.setattr(type(cached), "start", shuffled)
    assert text_quality(cached, data.test).value > healthy + 0.5


def test_columns_of_a_text(trained):
    graph, data = trained
    baseline = Subject(graph, NUMPY, data, 1)
    quantized = Subject(_after(graph, data, Quant(), KvCache()), NUMPY, data, 1)
    columns, faults, notes = measure(quantized, baseline, data, FAST, 0)
    assert faults == [] and columns["quality_metric"] == "nats_per_token"
    assert columns["fixed"] is None and columns["broken"] is None
    assert columns["quality_delta"] == pytest.approx(baseline.quality.value - quantized.quality.value)
    assert columns["token_us"] > 0 and columns["prefill_us"] > 0
    # keys and values, 1 row of 3 + 5 - 1 places of width 16, float32; and the position
    assert columns["state_bytes"] == 2 * 7 * 16 * 4 + 8
    assert notes[0].startswith(f"perplexity {math.exp(quantized.quality.value):.3f}, ")


@pytest.mark.parametrize("drop, ok", [(0.0, False), (0.49, False), (0.51, True)])
def test_more_nats_are_worse(trained, drop, ok):
    graph, data = trained
    baseline = Subject(graph, NUMPY, data, 1)
    worse = dataclasses.replace(baseline.quality, value=baseline.quality.value + 0.5)
    subject = Subject(graph, NUMPY, data, 1)
    subject.quality = worse
    settings = dataclasses.replace(FAST, max_drop=drop)
    columns = measure(subject, baseline, data, settings, 0)[0]
    assert columns["quality_delta"] == pytest.approx(-0.5) and columns["quality_ok"] is ok


def test_fewer_nats_are_better(trained):
    graph, data = trained
    baseline, subject = Subject(graph, NUMPY, data, 1), Subject(graph, NUMPY, data, 1)
    subject.quality = dataclasses.replace(baseline.quality, value=baseline.quality.value - 0.5)
    columns = measure(subject, baseline, data, FAST, 0)[0]
    assert columns["quality_delta"] == pytest.approx(0.5) and columns["quality_ok"] is True


def test_text_that_differs_while_it_is_timed_is_caught(trained):
    graph, data = trained
    subject = Subject(graph, NUMPY, data, 1)
    subject.query(0)
    assert subject.timed_difference() == ""
    subject.timed_outputs[0] = (subject.timed_outputs[0] + 1) % 7
    assert "timed query 0 differs from the quality run" in subject.timed_difference()


def test_a_network_of_nan_is_a_fault(trained, monkeypatch):
    graph, data = trained
    broken = dataclasses.replace(OPS["gelu"], forward=lambda x: x * np.float32(np.nan))
    monkeypatch.setitem(OPS, "gelu", broken)
    with np.errstate(invalid="ignore"):
        subject = Subject(graph, NUMPY, data, 1)
        faults = measure(subject, subject, data, FAST, 0)[1]
    assert any("not a number" in fault for fault in faults)


@given(st.floats(0.1, 5))
def test_bits_per_character_of_characters_are_nats_in_other_units(nats):
    quality = Quality(
        metric="nats_per_token", value=nats, low=nats, high=nats, correct=None, outputs=np.zeros(1), nan_rows=0
    )
    note = text_note(quality, _text(), "test")
    assert note == f"perplexity {math.exp(nats):.3f}, {nats / math.log(2):.4f} bits per character"


def test_calibration_looks_at_the_first_windows_of_a_long_text(trained, monkeypatch):
    """A layer's values are in memory at once, so their number is bounded."""
    graph, data = trained
    monkeypatch.setattr("mlperf_opt.passes.calibration._TOKENS", 40)
    few = dataclasses.replace(data, calibration=Split(data.calibration.inputs[:5], data.calibration.targets[:5]))
    names = {"layer1.up"}
    assert calibrate(graph, names, data, "minmax", 99.9) == calibrate(graph, names, few, "minmax", 99.9)
