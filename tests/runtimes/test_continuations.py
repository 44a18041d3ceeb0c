"""Rows of different lengths that are gone on with together and don't know of each other."""

import numpy as np
import pytest

from mlperf_opt.data import load_data
from mlperf_opt.errors import SessionError
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.passes import PassContext
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.runtimes import COMPILED, NUMPY, RUNTIMES, continuations, stepwise

ROWS = [[1, 2, 3, 4, 5], [6], [7, 8, 0]]
PROMPTS = np.array([[1, 2, 3, 4, 5], [6, 4, 4, 4, 4], [7, 8, 0, 4, 4]])  # what stands behind a row is anything
LENGTHS = np.array([5, 1, 3])


def _graph(cached, positions):
    network = MinimalTransformer(vocabulary=9, context=12, layers=2, dim=8, heads=2, hidden=12, positions=positions)
    graph = network.build("net", np.random.default_rng(4))
    return KvCache()(graph, PassContext(load_data("reverse"), 0, NUMPY)).graph if cached else graph


def _one_by_one(graph, prompt, count, pick):
    """The definition: the whole row again for each token."""
    row = list(prompt)
    for _ in range(count):
        row.append(int(pick(NUMPY.prepare(graph)(np.array([row]))[0, -1])))
    return row[len(prompt) :]


@pytest.mark.parametrize("runtime", [NUMPY, COMPILED], ids=["numpy", "compiled"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_rows_of_different_lengths_are_what_each_is_alone(runtime, cached, positions):
    expected = [_one_by_one(_graph(False, positions), prompt, 8, np.argmax) for prompt in ROWS]
    executable = runtime.prepare(_graph(cached, positions))
    together = np.stack(list(continuations(executable, PROMPTS, 8, lengths=LENGTHS)), axis=1)
    assert together.tolist() == expected
    assert len({tuple(row) for row in expected}) == 3


@pytest.mark.parametrize("cached", [False, True])
def test_what_is_picked_is_gone_on_with(cached):
    expected = [_one_by_one(_graph(False, "learned"), prompt, 8, np.argmin) for prompt in ROWS]
    found = continuations(
        NUMPY.prepare(_graph(cached, "learned")), PROMPTS, 8, lengths=LENGTHS, pick=lambda logits: logits.argmin(axis=-1)
    )
    assert np.stack(list(found), axis=1).tolist() == expected


@pytest.mark.parametrize("cached", [False, True])
def test_more_than_the_context_is_refused(cached):
    executable = NUMPY.prepare(_graph(cached, "learned"))
    found = list(continuations(executable, PROMPTS, 8, lengths=LENGTHS))
    assert len(found) == 8, "5 and 8, of which the last is never fed back"
    with pytest.raises(SessionError, match="12"):
        next(continuations(executable, PROMPTS, 9, lengths=LENGTHS))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("lengths, message", [([5, 0, 3], "the prompt is empty"), ([5, 6, 3], "6 tokens; expected 1 to 5")])
def test_lengths_that_cannot_be_are_refused(cached, lengths, message):
    executable = NUMPY.prepare(_graph(cached, "learned"))
    with pytest.raises(SessionError, match=message):
        next(continuations(executable, PROMPTS, 2, lengths=np.array(lengths)))


class _Doubled:
    """Stands for an executable: it notes the calls, and gives the same buffer each time."""

    graph = _graph(False, "learned")

    def __init__(self):
        self.calls, self._buffer = [], {}

    def __call__(self, inputs):
        self.calls.append(len(inputs))
        buffer = self._buffer.setdefault(inputs.shape[1:], np.zeros((500, *inputs.shape[1:])))
        return np.multiply(inputs, 2, out=buffer[: len(inputs)])


@pytest.mark.parametrize(
    "inputs, sizes",
    [
        (np.arange(70 * 256).reshape(70, 256), [32, 32, 6]),
        (np.arange(3 * 9000).reshape(3, 9000), [1, 1, 1]),
        (np.arange(1001, dtype=np.float32).reshape(1001, 1, 1, 1), [500, 500, 1]),
    ],
    ids=["text", "long text", "images"],
)
def test_many_samples_are_run_in_parts(inputs, sizes):
    executable = _Doubled()
    np.testing.assert_array_equal(stepwise(executable, inputs), 2 * inputs)
    assert executable.calls == sizes


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_a_cache_is_stepped_in_parts(runtime, monkeypatch, rng):
    plain, cached = (RUNTIMES[runtime].prepare(_graph(kind, "rotary")) for kind in (False, True))
    tokens = rng.integers(0, 9, (5, 4))
    expected = plain(tokens)
    started, start = [], type(cached).start
    monkeypatch.setattr(type(cached), "start", lambda self, *shape: started.append(shape) or start(self, *shape))
    monkeypatch.setattr("mlperf_opt.runtimes.generation._TOKENS", 8)
    np.testing.assert_allclose(stepwise(cached, tokens), expected, rtol=1e-3, atol=1e-5)
    assert started == [(2, 4), (2, 4), (1, 4)]
