"""Every kind of position, of shared heads and of tied table: with a cache or without, in every runtime, file and pass."""

from functools import cache
from itertools import product

import numpy as np
import pytest

from mlperf_opt.artifacts import load_graph, save_graph
from mlperf_opt.data import Dataset, Split
from mlperf_opt.graph import Weight, graph_hash
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.onnx_export.lower import lower
from mlperf_opt.ops import OPS
from mlperf_opt.passes import PASSES, PassContext
from mlperf_opt.runtimes import NUMPY, RUNTIMES, complete, intermediate_values, stepwise

pytestmark = pytest.mark.integration

KINDS = list(product(("learned", "sinusoidal", "rotary"), (None, 2, 1), (False, True)))
FORMATS = {
    "float32": {},
    "static": {"quant": {}},
    "dynamic": {"quant": {"scheme": "dynamic"}},
    "weight_only": {"quant": {"scheme": "weight_only"}},
    "fp16": {"quant": {"dtype": "fp16"}},
}
EXACT = ("float32", "weight_only", "fp16")  # no activation is rounded to codes
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 9))
DATA = Dataset("noise", "completion", *[Split(TOKENS, TOKENS)] * 3, prompt=3)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
each_runtime = pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=list(RUNTIMES))


@cache
def network(kind):
    """Grown weights: attention is far from uniform."""
    positions, kv_heads, tied = kind
    sizes = MinimalTransformer(11, 9, 2, 24, 4, 20, positions, kv_heads, tied)
    rng = np.random.default_rng(3)
    graph = sizes.build("net", rng)
    noise = {n: rng.standard_normal(w.values.shape).astype(np.float32) * 0.3 for n, w in graph.weights.items()}
    return graph.with_weights({n: Weight(w.values + noise[n]) for n, w in graph.weights.items()})


@cache
def passed(kind, form, cached=False):
    graph = network(kind)
    for name, settings in {**FORMATS[form], **({"kv_cache": {}} if cached else {})}.items():
        graph = PASSES[name](**settings)(graph, PassContext(DATA, 0, NUMPY)).graph
    return graph


@each_kind
@each_runtime
@pytest.mark.parametrize("form", FORMATS)
def test_a_token_at_a_time_is_the_whole_sequence(runtime, kind, form):
    """At every place of every row; numpy on whole sequences is what the papers say (tests/networks)."""
    expected = NUMPY.prepare(passed(kind, form))(TOKENS)
    limit = 1e-4 if form in EXACT else 0.05 * np.abs(expected).max()
    executables = [runtime.prepare(passed(kind, form, cached)) for cached in (False, True)]
    for executable in executables:
        np.testing.assert_allclose(executable(TOKENS), expected, rtol=0, atol=limit)
        np.testing.assert_allclose(stepwise(executable, TOKENS), expected, rtol=0, atol=limit)
    if form in EXACT:
        wanted, found = (complete(executable, TOKENS[:, :3], 6) for executable in executables)
        np.testing.assert_array_equal(found, wanted)


@each_kind
@each_runtime
def test_a_prompt_at_once_is_the_prompt_in_pieces(runtime, kind):
    """Rows of unlike lengths, each at its own position."""
    whole = NUMPY.prepare(passed(kind, "float32"))(TOKENS)
    session = runtime.prepare(passed(kind, "float32", cached=True)).start(3, 9)
    lengths = np.array([4, 1, 6])
    np.testing.assert_allclose(session.prefill(TOKENS[:, :6], lengths), whole[np.arange(3), lengths - 1], atol=1e-4)
    for _ in range(3):
        logits = session.decode(TOKENS[np.arange(3), lengths])
        np.testing.assert_allclose(logits, whole[np.arange(3), lengths], atol=1e-4)
        lengths += 1


@each_kind
def test_a_cache_holds_the_heads_of_the_keys_alone(kind):
    heads = kind[1] or 4
    session = NUMPY.prepare(passed(kind, "float32", cached=True)).start(2, 9)
    assert session.state_bytes == 2 * 2 * (2 * heads * 9 * 6) * 4 + 2 * 8  # layers, keys and values; positions


@each_kind
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_gives_the_graph_back(kind, form, tmp_path):
    graph = passed(kind, form, cached=True)
    save_graph(graph, tmp_path / "net.safetensors")
    assert graph_hash(load_graph(tmp_path / "net.safetensors")) == graph_hash(graph)


TIED = ("learned", None, True)


@pytest.mark.parametrize(
    "name, settings",
    [*(("quant", s["quant"]) for s in FORMATS.values() if s), ("prune", {"sparsity": 0.6}), ("cluster", {"bits": 3})],
    ids=str,
)
def test_a_tied_table_stays_one_weight(name, settings, tmp_path):
    """One in the count, in the file (11 x 24 numbers smaller than untied) and for both of its readers."""
    context = PassContext(DATA, 0, NUMPY)
    tied, untied = (PASSES[name](**settings)(network(("learned", None, t)), context).graph for t in (True, False))
    assert tied.readers("embed.table") == ["embed", "logits"] and "logits.weight" in untied.weights
    counts = [sum(w.values.size for w in g.parameters().values()) for g in (tied, untied)]
    assert counts[1] - counts[0] == 11 * 24
    sizes = [save_graph(g, tmp_path / f"{i}.safetensors").weights_bytes for i, g in enumerate((tied, untied))]
    assert sizes[1] - sizes[0] > 11 * 24 // 8
    table = tied.weights["embed.table"].dense()
    values = intermediate_values(tied, {"embed", "norm", "logits"}, TOKENS)
    np.testing.assert_array_equal(values["embed"], table[TOKENS])
    real = values["norm"] @ table.T + tied.weights["logits.bias"].dense()
    limit = 1e-4 if name != "quant" or settings.get("scheme") == "weight_only" or "dtype" in settings else 0.3
    np.testing.assert_allclose(values["logits"], real, atol=limit)


def test_a_tied_table_is_multiplied_as_codes_and_looked_up_as_codes():
    ops = {node.output: node.op for node in passed(TIED, "static").nodes}
    assert (ops["embed"], ops["logits"]) == ("qembedding", "qlinear")


@pytest.mark.parametrize("name", ["embed", "logits"])
@pytest.mark.parametrize("step", ["quant", "prune", "cluster"])
def test_skipping_one_reader_of_a_tied_table_spares_it(step, name):
    graph = PASSES[step](skip=(name,))(network(TIED), PassContext(DATA, 0, NUMPY)).graph
    assert graph.weights["embed.table"] is network(TIED).weights["embed.table"]


@pytest.mark.parametrize("form", FORMATS)
def test_onnx_holds_a_tied_table_once(form):
    stored = lower(passed(TIED, form)).initializers
    assert [name for name, array in stored.items() if array.size == 11 * 24] == ["embed.table"]


# sabotage: what the tests above would not notice would be worth nothing


def _checked(kind=("rotary", 2, True)):
    plain, cached = (passed(kind, "float32", c) for c in (False, True))
    expected = NUMPY.prepare(plain)(TOKENS)
    return np.abs(stepwise(NUMPY.prepare(cached), TOKENS) - expected).max()


@pytest.mark.parametrize("op", ["rotary", "cached_attention", "cache_write"])
def test_a_position_off_by_one_is_noticed(op, monkeypatch):
    assert _checked() < 1e-4
    definition, place = OPS[op], OPS[op].position("offset" if op == "rotary" else "position")

    def late(*arrays, **attributes):
        moved = list(arrays)
        moved[place] = None if arrays[place] is None else arrays[place] + np.array([0, 1, 0]) * (arrays[place] < 8)
        return definition.forward(*moved, **attributes)

    monkeypatch.setitem(OPS, op, type(definition)(**{**vars(definition), "forward": late}))
    assert _checked() > 1e-3


def test_a_query_that_reads_its_neighbours_keys_is_noticed(monkeypatch):
    """Heads of keys dealt out in turn instead of side by side."""
    assert _checked(("learned", 2, False)) < 1e-4
    definition = OPS["cached_attention"]

    def swapped(q, keys, values, position, **attributes):
        return definition.forward(q, keys[:, ::-1], values, position, **attributes)

    monkeypatch.setitem(OPS, "cached_attention", type(definition)(**{**vars(definition), "forward": swapped}))
    assert _checked(("learned", 2, False)) > 1e-3
