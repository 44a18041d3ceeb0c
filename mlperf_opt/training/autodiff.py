"""Reverse-mode differentiation of a graph: one walk forward, one back, each node once.

The walks are loops over the topological order, so time is linear in the number of nodes however they are connected.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Graph, split_name
from mlperf_opt.training.masters import argument_of
from mlperf_opt.training.objective import CROSS_ENTROPY, Objective

Array = NDArray[Any]
NO_FACTORS: Mapping[str, Array] = MappingProxyType({})


def arguments(graph: Graph, masters: Mapping[str, Array]) -> dict[str, Array]:
    """Return every weight argument of the graph, those in ``masters`` from their float32 master (see `training.masters`).

    A master of a quantized or float16 weight is first rounded to the weight's grid: the forward pass computes with exactly
    what the file will hold, while the gradient goes straight through to the master.
    """
    found: dict[str, Array] = {}
    values = {*graph.inputs, *(n.output for n in graph.nodes)}
    for node in graph.nodes:
        for argument in node.inputs:
            if not argument or argument in values or argument in found:
                continue
            name, part = split_name(argument)
            weight = graph.weights[name]
            found[argument] = argument_of(weight, part, masters[name]) if name in masters else weight.part(part)
    return found


def gradients(
    graph: Graph,
    weights: Mapping[str, Array],
    inputs: tuple[Array, ...],
    targets: Array,
    objective: Objective = CROSS_ENTROPY,
    factors: Mapping[str, Array] = NO_FACTORS,
) -> tuple[float, Array, dict[str, Array]]:
    """Return the loss of the graph's output against ``targets``, the output, and the loss's gradients.

    Args:
        graph: without state.
        weights: from `arguments`.
        inputs: in the order of ``graph.inputs``.
        targets: class ids of the output's leading shape, -1 where they don't count.
        objective: the loss.
        factors: what some values are multiplied by, elementwise, once they are made: dropout.

    Returns:
        (loss, logits, {weight name: gradient of its real values}).

    Raises:
        GraphError: a graph with state, or a gradient that reaches an op without one.
    """
    if graph.state:
        raise GraphError(f"{graph.name} has state: train it before it gets a cache")
    values: dict[str, Array] = {**weights, **dict(zip(graph.inputs, inputs, strict=True))}
    for node in graph.nodes:
        feeds = [values[name] if name else None for name in node.inputs]
        made = node.definition.forward(*feeds, **node.attributes)
        values[node.output] = made * factors[node.output] if node.output in factors else made
    logits = values[graph.outputs[0]]
    loss, d_logits = objective(logits, targets, inputs)
    return loss, logits, backward(graph, values, d_logits, factors)


def backward(
    graph: Graph, values: Mapping[str, Array], d_output: Array, factors: Mapping[str, Array] = NO_FACTORS
) -> dict[str, Array]:
    """Return the gradients of all weights, given every value of the forward walk and the gradient of the output.

    A weight that the output does not depend on has a gradient of zeros.
    """
    grads: dict[str, Array] = {graph.outputs[0]: d_output}
    parameters = graph.parameters()
    wanted = _values_behind(graph, parameters)
    found: dict[str, Array] = {}
    for node in reversed(graph.nodes):
        grad = grads.pop(node.output, None)  # a value is complete once its own node is reached
        if grad is None:
            continue
        if node.output in factors:
            grad = grad * factors[node.output]
        vjp = node.definition.vjp
        if vjp is None:
            raise GraphError(f"node {node.output!r}: {node.op} has no gradient")
        feeds = [values[name] if name else None for name in node.inputs]
        attributes = dict(node.attributes)
        if node.definition.skips_input_gradient:
            attributes["input_gradient"] = node.inputs[0] in wanted
        for name, d_input in zip(node.inputs, vjp(grad, values[node.output], *feeds, **attributes), strict=True):
            weight, _ = split_name(name)
            if d_input is None or not (weight in parameters or name in wanted):
                continue
            target, key = (found, weight) if weight in parameters else (grads, name)
            target[key] = target[key] + d_input if key in target else d_input
    unreached = parameters.keys() - found.keys()
    return found | {name: np.zeros(parameters[name].values.shape, d_output.dtype) for name in unreached}


def _values_behind(graph: Graph, parameters: Container[str]) -> set[str]:
    """Return the values that depend on a parameter: the others (the data, flattened or quantized) need no gradient."""
    found: set[str] = set()
    for node in graph.nodes:
        if any(name in found or split_name(name)[0] in parameters for name in node.inputs):
            found.add(node.output)
    return found
