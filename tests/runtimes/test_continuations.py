"""Rows of different lengths that are gone on with together and don't know of each other."""

import numpy as np
import pytest

from mlperf_opt.data import load_data
from mlperf_opt.errors import SessionError
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.passes import PassContext
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.runtimes import COMPILED, NUMPY, continuations

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
