"""Steps of a long text, parts of a batch, threads: what changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
from training_oracles import points

from mlperf_opt.data import Dataset, Split, Stream
from mlperf_opt.errors import ConfigError
from mlperf_opt.graph import graph_hash
from mlperf_opt.networks import DigitMLP, MinimalTransformer
from mlperf_opt.training import TrainSettings, loop, train

NETWORK = MinimalTransformer(vocabulary=7, context=8, layers=1, dim=8, heads=2, hidden=12, positions="rotary")
SETTINGS = TrainSettings(epochs=3, steps=5, batch=4, optimizer="adamw", lr=0.01, clip=1.0, dropout=0.2)


def _graph():
    return NETWORK.build("net", np.random.default_rng(0))


def _text(tokens=600):
    """A text in which each token is the one before it plus one or plus two."""
    steps = np.random.default_rng(2).integers(1, 3, tokens)
    stream = np.cumsum(steps) % 7
    held_out = Split(stream[:64].reshape(8, 8), stream[1:65].reshape(8, 8))
    return Dataset("count", "language", Stream(stream.astype(np.uint16), 8), held_out, held_out)


def test_an_epoch_of_a_stream_has_so_many_steps_and_learns():
    seen = []
    result = train(_graph(), _text(), replace(SETTINGS, epochs=40, dropout=0.0), seed=1, progress=seen.append)
    assert [report.epoch for report in seen] == list(range(1, 41))
    assert result.history[0] > 1.5 and abs(result.history[-1] - np.log(2)) < 0.25, "two successors, equally likely"


def _gradients(monkeypatch, graph, data, settings):
    """Return the gradients of the first step, as the optimizer is given them."""
    found = {}

    def note(weight, grad, slots, lr, step):
        found.setdefault(len(found), grad.copy())

    monkeypatch.setattr("mlperf_opt.training.optimizers.Adam.update", lambda self, *arguments: note(*arguments))
    train(graph, data, replace(settings, epochs=1), seed=3)
    return list(found.values())[: len(graph.parameters())]


def _uneven():
    """Rows of which 1 to 7 targets count: a mean of the parts' means would be wrong."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 7, (12, 9))
    targets = tokens[:, 1:].copy()
    targets[np.arange(8) >= rng.integers(1, 8, 12)[:, None]] = -1
    split = Split(tokens[:, :-1], targets)
    return Dataset("uneven", "completion", split, split, split)


def _most_apart(monkeypatch, parts, data=None, graph=None):
    graph, data = graph or _graph(), data or _uneven()
    settings = TrainSettings(batch=12, optimizer="adam", lr=0.01)
    whole = _gradients(monkeypatch, graph, data, settings)
    apart = _gradients(monkeypatch, graph, data, replace(settings, accumulate=parts))
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(whole, apart, strict=True) if a.any())


@pytest.mark.parametrize("parts", [2, 3, 5, 12])
def test_the_parts_of_a_batch_sum_up_to_its_gradient(parts, monkeypatch):
    assert _most_apart(monkeypatch, parts) < 2e-5


def test_the_parts_of_a_batch_of_classes_do_so_too(monkeypatch):
    network = DigitMLP(image=(1, 1, 2), sizes=(2, 6, 3)).build("mlp", np.random.default_rng(0))
    assert _most_apart(monkeypatch, 4, points(12), network) < 2e-5


def test_parts_that_lose_a_row_would_be_noticed(monkeypatch):
    monkeypatch.setattr(loop.np, "array_split", _by_rows)
    assert _most_apart(monkeypatch, 3) > 0.01


def _by_rows(rows, parts):
    size = len(rows) // parts
    return [rows[start : start + size - (parts > 1)] for start in range(0, len(rows), size)]


def test_a_part_in_which_nothing_counts_is_left_out():
    data = _uneven()
    data.train.targets[:6] = -1
    result = train(_graph(), data, TrainSettings(epochs=1, batch=12, accumulate=12), seed=0)
    assert np.isfinite(result.history[0])


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(threads):
    settings = replace(SETTINGS, accumulate=4, epochs=2)
    one, many = (train(_graph(), _text(), settings, seed=1, threads=n) for n in (1, threads))
    assert graph_hash(one.graph) == graph_hash(many.graph) and one.history == many.history


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"accumulate": 0}, {"accumulate": 5, "batch": 4}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainSettings(**wrong)
