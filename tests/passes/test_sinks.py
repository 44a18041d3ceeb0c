"""What sinks are for, on a network that ships: it writes a word backwards, so it must still see where the word began."""

import pytest
from pass_graphs import run_pass

from mlperf_opt.artifacts import load_graph
from mlperf_opt.data import load_data
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import RUNTIMES, complete

_PLACES = 12


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=list(RUNTIMES))
@pytest.mark.parametrize("sinks, least, most", [(8, 0.99, 1.0), (0, 0.0, 0.05)])
def test_as_many_places_do_with_sinks_what_they_cannot_do_without(runtime, sinks, least, most):
    data = load_data("reverse")
    graph = load_graph(resource_dir("models") / "transformer" / "weights.safetensors")
    kept = run_pass(KvCache(window=_PLACES - sinks, sinks=sinks), graph, data).graph
    rows = data.test.inputs[:200]
    written = complete(runtime.prepare(kept), rows[:, : data.prompt], data.answer)
    right = (written == data.test.targets[:200, -data.answer :]).all(axis=1).mean()
    assert least <= right <= most
