"""profile: rows, work and bytes, counted by hand."""

from typing import ClassVar

import numpy as np
import pytest
from pass_graphs import run_pass

from mlperf_opt.errors import ConfigError
from mlperf_opt.passes import PassContext
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.passes.profile import Profile
from mlperf_opt.passes.quant import Quant
from mlperf_opt.runtimes import RUNTIMES, RuntimeOptions


def _rows(graph, data, **settings):
    result = run_pass(Profile(**{"repeats": 3, **settings}), graph, data)
    assert result.graph is graph
    assert list(result.tables) == ["nodes"]
    return result, {row["node"]: row for row in result.tables["nodes"]}


def _column(rows, name):
    return [row[name] for row in rows.values()]


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("before", [None, "static", "dynamic"])
def test_a_row_for_each_node_and_shares_of_one_whole(request, model, before):
    graph, data = request.getfixturevalue(model)
    graph = graph if before is None else run_pass(Quant(scheme=before), graph, data).graph
    result, rows = _rows(graph, data)
    assert [(row["node"], row["op"]) for row in rows.values()] == [(n.output, n.op) for n in graph.nodes]
    assert sum(_column(rows, "time_share")) == pytest.approx(1)
    assert min(_column(rows, "time_us")) > 0
    assert result.stats["time_us"] == pytest.approx(sum(_column(rows, "time_us")))
    assert result.stats["macs"] == sum(_column(rows, "macs"))
    parameters = sum(weight.values.size for weight in graph.parameters().values())
    assert sum(_column(rows, "parameters")) == parameters == {"mlp": 2410, "cnn": 666, "transformer": 27739}[model]


@pytest.mark.parametrize("batch", [1, 3])
def test_cnn_by_hand(cnn, batch):
    _, rows = _rows(*cnn, batch=batch)
    # outputs x kernel: 4*8*8 * 9, 8*4*4 * 4*9, 10 * 32
    assert _column(rows, "macs") == [batch * m for m in (2304, 0, 0, 4608, 0, 0, 0, 320)]
    assert 2 * sum(_column(rows, "macs")) == batch * 14464
    assert _column(rows, "parameters") == [40, 0, 0, 296, 0, 0, 0, 330]
    assert _column(rows, "weight_bytes") == [160, 0, 0, 1184, 0, 0, 0, 1320]
    floats = (256, 256, 64, 128, 128, 32, 32, 10)
    assert _column(rows, "activation_bytes") == [4 * batch * f for f in floats]
    assert rows["relu1"]["moved_bytes"] == 2 * 4 * batch * 256
    assert rows["fc1"]["moved_bytes"] == 4 * (batch * 32 + 330 + batch * 10)
    assert rows["conv1"]["output"] == "float32[N,4,8,8]"


def test_mlp_flops_by_hand(mlp):
    result, rows = _rows(*mlp)
    assert 2 * result.stats["macs"] == 4736
    assert (rows["fc1"]["macs"], rows["fc2"]["macs"]) == (64 * 32, 32 * 10)


def test_codes_take_a_quarter(mlp):
    graph, data = mlp
    _, rows = _rows(run_pass(Quant(), graph, data).graph, data)
    assert rows["fc1"]["weight_bytes"] == 64 * 32 + 4 * 32  # int8, and an int32 bias
    assert (rows["fc1"]["activation_bytes"], rows["fc2"]["activation_bytes"]) == (32, 40)


def test_transformer_by_hand(transformer):
    result, rows = _rows(*transformer)
    t, d = 16, 32
    assert rows["layer1.query"]["macs"] == t * d * d
    assert rows["layer1.attention"]["macs"] == 2 * t * t * d
    assert rows["layer2.up"]["macs"] == rows["layer2.down"]["macs"] == t * d * 128
    assert rows["embed"]["macs"] == rows["norm"]["macs"] == 0
    assert 2 * result.stats["macs"] == 879_616
    _, cached = _rows(run_pass(KvCache(), *transformer).graph, transformer[1])
    assert cached["layer1.attention.keys.next"]["activation_bytes"] == 4 * t * d


def test_a_batch_beyond_the_split_is_the_whole_split(mlp):
    _, rows = _rows(*mlp, batch=10_000, repeats=1)
    assert rows["fc2"]["activation_bytes"] == 200 * 10 * 4


def test_more_work_is_seen_to_take_more_time(cnn):
    small, large = (sum(_column(_rows(*cnn, batch=b)[1], "time_us")) for b in (1, 200))
    assert large > 2 * small


def test_calls_are_counted(mlp):
    """A tenth of the runs warm up, untimed."""
    graph, data = mlp
    calls = []

    class Counting:
        notes: ClassVar = {}

        def __call__(self, *inputs):
            calls.append("warm")

        def observe(self, observer, *inputs):
            calls.append("timed")
            for place, node in enumerate(graph.nodes):
                observer(node, np.zeros(1), 1000 * (place + 1) * (100 if len(calls) == 3 else 1))

    context = type("Context", (), {"data": data, "runtime": type("R", (), {"prepare": lambda self, g: Counting()})()})()
    result = Profile(repeats=15)(graph, context)
    assert calls == ["warm"] * 2 + ["timed"] * 15
    assert [row["time_us"] for row in result.tables["nodes"]] == [1, 2, 3, 4], "the median: one slow run doesn't count"


@pytest.mark.parametrize("settings", [{"batch": 0}, {"repeats": 0}, {"batch": -1}])
def test_impossible_settings_are_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ConfigError, match=f"^{name}={value}: expected a whole number >= 1"):
        Profile(**settings)


def test_a_row_says_what_the_runtime_decided(mlp):
    graph, data = mlp
    runtime = RUNTIMES["compiled"].configured(RuntimeOptions(sparse="always"))
    rows = Profile(repeats=1)(graph, PassContext(data, 0, runtime)).tables["nodes"]
    notes = {row["node"]: row["note"] for row in rows}
    assert [name for name, note in notes.items() if note == "0 % zeros: sparse, as set"] == ["fc1", "fc2"]
    assert not any(note for name, note in notes.items() if name not in ("fc1", "fc2"))
