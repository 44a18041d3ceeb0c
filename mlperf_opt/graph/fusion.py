"""Fusion: the same numbers from fewer nodes.

A relu or gelu right behind a product becomes the product's own last step (attribute ``activation``). What has no effect
goes: a relu of values that are none below zero, a flatten of rows that are flat already, nodes whose value nobody reads, and
the weights that are left without a reader.

gamma and beta of a layer_norm stay where they are. Multiplied into the linear layers behind it they would move roundings,
give layers without a bias one, and bring nothing: the norm multiplies and adds all the same, by ones and zeros. Tables that
depend on settings alone (sinusoids) are made once, when a runtime prepares a graph, and need no room in a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from mlperf_opt.graph.graph import Graph, Node
from mlperf_opt.graph.verify import verify
from mlperf_opt.graph.weight import split_name
from mlperf_opt.ops.activation import ACTIVATIONS

_PRODUCTS = ("linear", "conv2d", "qlinear", "qconv2d")
_KEEPS_SIGN = ("flatten", "max_pool2d", "avg_pool2d")  # of values that are none below zero, none is below zero


@dataclass(frozen=True)
class Fusion:
    """What `fuse_graph` did.

    Attributes:
        graph: the new graph (the given one, where nothing could be done).
        fused: (product, activation) by the names of their nodes.
        removed: names of nodes without an effect.
    """

    graph: Graph
    fused: tuple[tuple[str, str], ...] = ()
    removed: tuple[str, ...] = ()


def fuse_graph(graph: Graph) -> Fusion:
    """Return the graph with fewer nodes and outputs that are equal bit for bit."""
    living = _reachable(graph)
    removed = [node.output for node in graph.nodes if node.output not in living]
    nodes: list[Node] = []
    renamed: dict[str, str] = {}
    fused: dict[str, str] = {}  # activation -> product
    kept = {*graph.outputs, *(state.update for state in graph.state)}
    for node in graph.nodes:
        if node.output not in living:
            continue
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))  # noqa: PLW2901
        product = _fusable(nodes, node, kept)
        if product is not None and _readers(graph, product.output, renamed, living) != 1:
            product = None
        if product is not None:
            fused[node.output] = product.output
            # an output keeps its name; elsewhere the product does, by which its weights and settings are called
            name = node.output if node.output in kept else product.output
            renamed[node.output] = name
            nodes[nodes.index(product)] = replace(
                product, output=name, attributes={**product.attributes, "activation": node.op}
            )
        elif node.output not in kept and _is_idle(graph, nodes, node):
            removed.append(node.output)
            renamed[node.output] = node.inputs[0]
        else:
            nodes.append(node)
    if not fused and not removed:
        return Fusion(graph)
    used = {split_name(name)[0] for node in nodes for name in node.inputs}
    weights = {name: weight for name, weight in graph.weights.items() if name in used}
    pairs = tuple((product, activation) for activation, product in fused.items())
    return Fusion(verify(replace(graph, nodes=tuple(nodes), weights=weights)), pairs, tuple(removed))


def unfuse_graph(graph: Graph) -> Graph:
    """Return the graph with activations as nodes again: for what knows products without an activation only."""
    names = {*graph.inputs, *graph.weights, *(s.name for s in graph.state), *(n.output for n in graph.nodes)}
    nodes: list[Node] = []
    for node in graph.nodes:
        activation = node.attributes.get("activation", "")
        if not activation:
            nodes.append(node)
            continue
        before = f"{node.output}.before"
        while before in names:
            before += "_"
        rest = {key: value for key, value in node.attributes.items() if key != "activation"}
        nodes += [replace(node, output=before, attributes=rest), Node(str(activation), (before,), node.output)]
    return graph if len(nodes) == len(graph.nodes) else verify(replace(graph, nodes=tuple(nodes)))


def _reachable(graph: Graph) -> set[str]:
    """Names that the outputs and the state depend on."""
    found = {*graph.outputs, *(state.update for state in graph.state)}
    for node in reversed(graph.nodes):
        if node.output in found:
            found |= set(node.inputs)
    return found


def _fusable(nodes: Sequence[Node], node: Node, kept: set[str]) -> Node | None:
    """Return the product that can take ``node`` in as its activation."""
    if node.op not in ACTIVATIONS or node.inputs[0] in kept:
        return None
    maker = _maker(nodes, node.inputs[0])
    if maker is None or maker.op not in _PRODUCTS or maker.attributes.get("activation"):
        return None
    return maker


def _readers(graph: Graph, value: str, renamed: Mapping[str, str], living: Set[str]) -> int:
    """Count the nodes that read a value, by whatever name, and stay."""
    names = {value, *(old for old, new in renamed.items() if new == value)}
    return sum(n.output in living and n.output not in renamed and not names.isdisjoint(n.inputs) for n in graph.nodes)


def _is_idle(graph: Graph, nodes: Sequence[Node], node: Node) -> bool:
    """Whether a node hands on what it is given."""
    if node.op == "flatten":
        return len(graph.specs[node.output].shape) == len(graph.specs[node.inputs[0]].shape)
    if node.op != "relu":
        return False
    maker = _maker(nodes, node.inputs[0])
    while maker is not None and maker.op in _KEEPS_SIGN:
        maker = _maker(nodes, maker.inputs[0])
    return maker is not None and (maker.op == "relu" or maker.attributes.get("activation") == "relu")


def _maker(nodes: Sequence[Node], name: str) -> Node | None:
    return next((node for node in nodes if node.output == name), None)
