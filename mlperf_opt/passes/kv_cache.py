"""kv_cache: keep keys and values from token to token instead of computing them again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mlperf_opt.errors import PassError
from mlperf_opt.graph import LENGTHS, POSITION, Graph, Node, State, verify
from mlperf_opt.ops import OPS, Spec
from mlperf_opt.passes.base import Pass, PassContext, PassResult

_ROWS = Spec(("N",), "int64")


@dataclass(frozen=True)
class KvCache(Pass):
    """Keep the keys and values of earlier tokens, so that a new token costs one step instead of the whole sequence again.

    Attention and positions are rewritten to use explicit state: per attention two preallocated arrays (N, heads, L, d) and,
    per row, how many tokens it holds. Outputs stay equal to recomputation; quality is measured through decoding.
    """

    effect: ClassVar = "keeps_weights"
    tolerance: ClassVar = 0.0
    not_after: ClassVar = ("kv_cache",)

    def check(self, graph: Graph) -> None:
        attentions = [node for node in graph.nodes if node.op == "attention"]
        if graph.state:
            raise PassError(f"kv_cache: {graph.name} has a cache already")
        if not attentions:
            raise PassError(f"kv_cache: {graph.name} has no attention whose keys and values could be kept")
        for node in attentions:
            if not node.attributes["causal"]:
                raise PassError(f"kv_cache: attention {node.output!r} is not causal: a later token changes earlier ones")

    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        states, nodes = [State(POSITION, _ROWS, f"{POSITION}.next")], []
        for node in graph.nodes:
            if node.op == "attention":
                states += _states(graph, node)
                nodes += _cached(node)
            elif "offset?" in OPS[node.op].arguments:
                nodes.append(replace(node, inputs=(*node.inputs[:-1], POSITION)))
            else:
                nodes.append(node)
        nodes.append(Node("advance", (POSITION, LENGTHS), f"{POSITION}.next"))
        inputs = {**graph.inputs, LENGTHS: _ROWS}
        return PassResult(verify(replace(graph, nodes=tuple(nodes), inputs=inputs, state=tuple(states))))


def _states(graph: Graph, node: Node) -> list[State]:
    width = int(graph.specs[node.output].shape[2]) // int(node.attributes["heads"])
    heads = int(graph.specs[node.argument("k")].shape[2]) // width  # those of the keys: queries may share them
    spec = Spec(("N", heads, "L", width), "float32")
    return [State(f"{node.output}.{kind}", spec, f"{node.output}.{kind}.next") for kind in ("keys", "values")]


def _cached(node: Node) -> list[Node]:
    q, k, v = node.inputs
    keys, values = (f"{node.output}.{kind}" for kind in ("keys", "values"))
    return [
        Node("cache_write", (keys, k, POSITION, LENGTHS), f"{keys}.next"),
        Node("cache_write", (values, v, POSITION, LENGTHS), f"{values}.next"),
        Node(
            "cached_attention",
            (q, f"{keys}.next", f"{values}.next", POSITION),
            node.output,
            {"heads": node.attributes["heads"]},
        ),
    ]
