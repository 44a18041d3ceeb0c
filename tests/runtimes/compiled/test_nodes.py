"""Node by node, on the same inputs: every network behind every kind of pass, and whole graphs where nothing may round."""

import numpy as np
import pytest
from compiled_cases import BEFORE, MODELS, check_against_numpy, check_nodes, model, runtime

from mlperf_opt.graph import fuse_graph
from mlperf_opt.runtimes import NUMPY

SHIPPED = ["mlp", "cnn", "transformer"]
VARIANTS = [(name, before, False) for name in SHIPPED for before in BEFORE]
VARIANTS += [("transformer", before, True) for before in BEFORE]
VARIANTS += [(name, before, False) for name in MODELS if name not in SHIPPED for before in ("none", "static", "dynamic")]
INTEGER = [
    (name, before) for name in MODELS if name != "transformer" for before in ("static", "static-prune", "static-tensor-mse")
]


@pytest.mark.parametrize("isa", ["auto", "portable"])
@pytest.mark.parametrize("name, before, cached", VARIANTS)
def test_every_node_is_its_op_on_the_same_inputs(name, before, cached, isa):
    graph, inputs = model(name, before, cached)
    check_nodes(graph, inputs[:3], isa)
    check_nodes(fuse_graph(graph).graph, inputs[:3], isa)


@pytest.mark.parametrize("rows", [1, 5, 13, 40])
@pytest.mark.parametrize("name, before", INTEGER)
def test_whole_graphs_of_integers_are_equal_bit_for_bit(name, before, rows):
    graph, inputs = model(name, before)
    for isa in ("auto", "portable"):
        check_against_numpy(graph, inputs[:rows], exact=True, isa=isa)


@pytest.mark.parametrize("isa", ["vnni", "portable"])
@pytest.mark.parametrize("name, before, cached", VARIANTS)
def test_instructions_do_not_change_a_bit(name, before, cached, isa):
    graph, inputs = model(name, before, cached)
    rows = inputs[:40]
    np.testing.assert_array_equal(runtime(isa=isa).prepare(graph)(rows), runtime().prepare(graph)(rows))


@pytest.mark.parametrize("name, before", [(n, b) for n in ("mlp", "cnn", "lenet5") for b in ("none", "fp16", "weight_only")])
def test_floats_stay_close_through_whole_networks(name, before):
    if (name, before) == ("lenet5", "fp16"):
        before = "none"
    graph, inputs = model(name, before)
    check_against_numpy(graph, inputs[:20], exact=False)


def test_predictions_are_those_of_numpy():
    for name in ("mlp", "cnn"):
        graph, inputs = model(name, "none")
        expected, actual = NUMPY.prepare(graph)(inputs), runtime().prepare(graph)(inputs)
        np.testing.assert_array_equal(actual.argmax(axis=1), expected.argmax(axis=1))
