"""Structure and arrays as plain data and back; the hash; malformed data."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import (
    Affine,
    Graph,
    Node,
    State,
    Weight,
    array_specs,
    arrays,
    graph_hash,
    rebuild,
    structure,
    to_text,
    verify,
)  # fmt: skip
from mlperf_opt.ops import Spec


def _graph():
    weights = {
        "table": Weight(np.arange(20, dtype=np.int8).reshape(5, 4), Affine(np.arange(1, 6, dtype=np.float32), 0, 8)),
        "fc": Weight(np.linspace(-1, 1, 12, dtype=np.float16).reshape(3, 4)),
        "bias": Weight(np.array([1, -2, 3], np.int32), Affine(np.float32(0.5), None, 32)),
    }
    nodes = (
        Node("qembedding", ("tokens", "table:codes", "table:scale"), "e"),
        Node("layer_norm", ("e", "gamma", "beta"), "n", {"eps": 1e-5}),
        Node("attention", ("n", "n", "n"), "a", {"heads": 2, "causal": True}),
        Node("linear", ("a", "fc", "bias"), "out"),
        Node("advance", ("position", "lengths"), "next"),
    )
    weights |= {"gamma": Weight(np.ones(4, np.float32)), "beta": Weight(np.zeros(4, np.float32))}
    inputs = {"tokens": Spec(("N", "T"), "int64"), "lengths": Spec(("N",), "int64")}
    return verify(Graph("g", nodes, weights, inputs, ("out",), (State("position", Spec(("N",), "int64"), "next"),)))


GRAPH = _graph()
DATA, STORED = structure(GRAPH), arrays(GRAPH)


def test_round_trip_through_json():
    again = verify(rebuild(json.loads(json.dumps(DATA)), STORED))
    assert structure(again) == DATA
    assert (again.nodes, again.inputs, again.state) == (GRAPH.nodes, GRAPH.inputs, GRAPH.state)
    assert to_text(again) == to_text(GRAPH)
    for name, weight in GRAPH.weights.items():
        np.testing.assert_array_equal(again.weights[name].dense(), weight.dense())
        assert again.weights[name].values.dtype == weight.values.dtype
    assert graph_hash(again) == graph_hash(GRAPH)


def test_arrays_and_their_specs_agree():
    assert {name: Spec(a.shape, str(a.dtype)) for name, a in STORED.items()} == array_specs(DATA)
    assert list(STORED) == ["table", "table:scale", "fc", "bias", "bias:scale", "gamma", "beta"]


def _bit(name):
    values = GRAPH.weights[name].values.copy()
    values.view(np.uint8).reshape(-1)[-1] ^= 1
    return GRAPH.with_weights({name: Weight(values, GRAPH.weights[name].encoding)})


def _node(place, **changes):
    nodes = list(GRAPH.nodes)
    nodes[place] = replace(nodes[place], **changes)
    return replace(GRAPH, nodes=tuple(nodes))


CHANGED = {
    "a bit of a float16": _bit("fc"),
    "a bit of a code": _bit("table"),
    "a scale": GRAPH.with_weights({"bias": Weight(GRAPH.weights["bias"].values, Affine(np.float32(0.25), None, 32))}),
    "bits": GRAPH.with_weights({"table": Weight(STORED["table"], Affine(STORED["table:scale"], 0, 7))}),
    "a dtype": GRAPH.with_weights({"fc": Weight(STORED["fc"].astype(np.float32))}),
    "minus zero": GRAPH.with_weights({"beta": Weight(-np.zeros(4, np.float32))}),
    "an attribute": _node(1, attributes={"eps": 2e-5}),
    "the type of an attribute": _node(2, attributes={"heads": 2, "causal": 1}),
    "an op": _node(2, op="add"),
    "an input": _node(3, inputs=("n", "fc", "bias")),
    "a node's name": _node(3, output="logits"),
    "the order of nodes": replace(GRAPH, nodes=(GRAPH.nodes[-1], *GRAPH.nodes[:-1])),
    "the graph's name": replace(GRAPH, name="h"),
    "an output": replace(GRAPH, outputs=("out", "next")),
    "an input's shape": replace(GRAPH, inputs={**GRAPH.inputs, "tokens": Spec(("N", 3), "int64")}),
    "no state": replace(GRAPH, state=()),
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_any_change_changes_the_hash(changed):
    assert graph_hash(changed) != graph_hash(GRAPH)


def test_the_hash_is_that_of_the_content():
    assert graph_hash(_graph()) == graph_hash(GRAPH)
    assert graph_hash(_node(2, attributes={"causal": True, "heads": 2})) == graph_hash(GRAPH)
    assert len({graph_hash(graph) for graph in CHANGED.values()}) == len(CHANGED)


def _paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _replaced(data, path, value):
    if not path:
        return value
    data = copy.deepcopy(data)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


def _check_only_graph_errors(data, stored):
    """Whatever the data: a graph that prints, or a `GraphError`."""
    for read in (array_specs, lambda d: to_text(verify(rebuild(d, stored)))):
        try:
            read(data)
        except GraphError as error:
            assert str(error)


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["N", "e", "fc", "int64"])
)
junk = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
JSON = json.loads(json.dumps(DATA))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(_paths(JSON))), junk)
def test_mutated_data_gives_graph_errors_only(path, value):
    _check_only_graph_errors(_replaced(JSON, path, value), STORED)


@pytest.mark.parametrize("path", [path for path in _paths(JSON) if path], ids=str)
def test_every_place_may_hold_nonsense_or_be_gone(path):
    for value in (None, [], {}, "", "x", -1, 10**400, float("nan"), float("inf"), True, [None], {"a": 1}):
        _check_only_graph_errors(_replaced(JSON, path, value), STORED)
    data = copy.deepcopy(JSON)
    place = data
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    _check_only_graph_errors(data, STORED)


@pytest.mark.parametrize(
    "path, value, text",
    [
        ((), [], "malformed"),
        (("nodes", 0), ["relu"], "malformed"),
        (("inputs", 0, 2), "float31", "malformed"),
        (("inputs", 0, 1), ["N", -1], "malformed"),
        (("inputs", 1, 0), "tokens", "an input stands twice"),
        (("weights", 1, 0), "table", "the weight 'table' stands twice"),
        (("weights", 1, 1), [4, 3], r"the array 'fc' is float16\[3,4\]; the structure of the graph says float16\[4,3\]"),
        (("weights", 1, 2), "float32", "says float32"),
        (("weights", 1, 0), "gone", "the array 'gone' is missing"),
    ],
)
def test_malformed_data_is_refused(path, value, text):
    with pytest.raises(GraphError, match=text):
        rebuild(_replaced(JSON, path, value), STORED)


TOKENS = {"kind": "char", "symbols": "abc"}  # the graph has three outputs


def test_a_tokenizer_travels_and_counts_in_the_hash():
    graph = verify(replace(GRAPH, tokenizer=TOKENS))
    data = json.loads(json.dumps(structure(graph)))
    assert data == {**DATA, "tokenizer": TOKENS}
    again = verify(rebuild(data, STORED))
    assert again.tokenizer == TOKENS and graph_hash(again) == graph_hash(graph)
    other = replace(GRAPH, tokenizer={"kind": "char", "symbols": "abd"})
    assert len({graph_hash(g) for g in (GRAPH, graph, other)}) == 3


def test_a_graph_without_a_tokenizer_is_written_as_before_there_were_any():
    assert "tokenizer" not in DATA and rebuild(DATA, STORED).tokenizer is None


@pytest.mark.parametrize(
    "tokenizer, text",
    [
        ({"kind": "char", "symbols": "ab"}, "its tokenizer has 2 tokens, but its output 3 classes"),
        ({"kind": "char", "symbols": "cba"}, "ascending"),
        ({"kind": "bpe", "merges": []}, "its tokenizer has 256 tokens"),
        ({"kind": "bpe", "merges": [[1, 999]]}, "merge 0"),
        ({}, "of the kind char"),
        ("abc", "of the kind char"),
        ([], "of the kind char"),
        (5, "of the kind char"),
    ],
)
def test_a_tokenizer_that_is_none_is_refused(tokenizer, text):
    with pytest.raises(GraphError, match=text):
        verify(rebuild({**DATA, "tokenizer": tokenizer}, STORED))
