"""kv_cache: keep keys and values from token to token instead of computing them again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import PassError
from mlperf_opt.graph import LENGTHS, POSITION, Graph, Node, State, Weight, verify
from mlperf_opt.ops import OPS, Spec
from mlperf_opt.ops.kv_cache import CODE_LIMIT
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.passes.calibration import coarse
from mlperf_opt.runtimes import intermediate_values
from mlperf_opt.settings import require

Array = NDArray[Any]
_ROWS = Spec(("N",), "int64")
_DTYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
_SINKS = 4  # what the paper found enough
_CALIBRATION_ROWS = 128  # sequences that the keys' scales are taken from
_TOKENS = 4_096  # of them at once: what a layer makes of all takes hundreds of megabytes, and longer than part by part


@dataclass(frozen=True)
class KvCache(Pass):
    """Keep the keys and values of earlier tokens, so that a new token costs one step instead of the whole sequence again.

    Attention and positions are rewritten to use explicit state: per attention two preallocated arrays (N, heads, L, d), of
    the heads that keys have, and, per row, how many tokens it holds. In float32 and without a window that matters outputs
    stay equal to recomputation, which the run checks; quality is measured through decoding.

    Attributes:
        dtype: of what is kept: fp32, fp16 or int8. int8 keys have one scale for each channel, from the first 128 sequences
            of the calibration split, the two channels of a rotary pair one for both; int8 values one for each token and
            head, found while running (Liu et al., KIVI, arXiv:2402.02750).
        window: a token sees the last so many tokens, itself included, and the sinks; null: all. With rotary positions a
            session can then go on for ever in the same memory and time; other positions end with the model's context.
        sinks: first tokens that stay in sight of a window (Xiao et al., arXiv:2309.17453), at distances as if the tokens
            that left had never been.
    """

    dtype: Literal["fp32", "fp16", "int8"] = "fp32"
    window: int | None = None
    sinks: int = _SINKS

    effect: ClassVar = "keeps_weights"
    tolerance: ClassVar = 0.0
    not_after: ClassVar = ("kv_cache",)

    def __post_init__(self) -> None:
        require(self.window is None or self.window >= 1, "window", self.window, "a whole number >= 1, or null")
        require(self.sinks >= 0, "sinks", self.sinks, "a whole number >= 0")
        require(self.window is not None or self.sinks == _SINKS, "sinks", self.sinks, f"{_SINKS}, or a window with them")

    def is_exact(self, graph: Graph) -> bool:
        everything = self.window is None or (graph.context is not None and self.sinks + self.window >= graph.context)
        return self.dtype == "fp32" and everything

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
                states += self._states(graph, node)
                nodes += self._cached(graph, node)
            elif "offset?" in OPS[node.op].arguments:
                nodes.append(replace(node, inputs=(*node.inputs[:-1], POSITION)))
            else:
                nodes.append(node)
        nodes.append(Node("advance", (POSITION, LENGTHS), f"{POSITION}.next"))
        changed = replace(
            graph,
            nodes=tuple(nodes),
            weights={**graph.weights, **(_key_scales(graph, context) if self.dtype == "int8" else {})},
            inputs={**graph.inputs, LENGTHS: _ROWS},
            state=tuple(states),
        )
        return PassResult(verify(changed))

    def _states(self, graph: Graph, node: Node) -> list[State]:
        heads, width = _heads(graph, node)
        spec = Spec(("N", heads, "L", width), _DTYPES[self.dtype])
        kinds = {"keys": spec, "values": spec}
        if self.dtype == "int8":
            kinds["value_scales"] = Spec(("N", heads, "L", 1), "float32")
        return [State(f"{node.output}.{kind}", spec, f"{node.output}.{kind}.next") for kind, spec in kinds.items()]

    def _cached(self, graph: Graph, node: Node) -> list[Node]:
        q, k, v = node.inputs
        at = node.output
        window: dict[str, int] = {} if self.window is None else {"sinks": self.sinks, "window": self.window}
        found: list[Node] = []

        def write(kind: str, new: str, *scale: str) -> str:
            found.append(Node("cache_write", (f"{at}.{kind}", new, POSITION, LENGTHS, *scale), f"{at}.{kind}.next", window))
            return f"{at}.{kind}.next"

        scales: tuple[str, ...] = ()
        if self.dtype == "int8":
            of_values = f"{at}.value_scale"
            found.append(Node("head_scale", (v,), of_values, {"heads": _heads(graph, node)[0]}))
            scales = (f"{at}.key_scale", write("value_scales", of_values))
            keys, values = write("keys", k, scales[0]), write("values", v, of_values)
        else:
            keys, values = write("keys", k), write("values", v)
        turned = next((n for n in graph.nodes if n.output == q and n.op == "rotary"), None)
        far: tuple[str, ...] = ()
        if self.window is not None and self.sinks and turned is not None:
            # Angles of keys say where they stand in the text. In the window that is as good as the place in the cache: the
            # distance is the same. Only that to the sinks shrinks: for them the query is turned as if it stood behind them.
            reach = {"reach": self.sinks + self.window - 1}
            found.append(Node("rotary", (turned.argument("x"), POSITION), f"{q}.sinks", {**turned.attributes, **reach}))
            far = (*(scales or ("", "")), f"{q}.sinks")
        inputs = (q, keys, values, POSITION, *(far or scales))
        return [*found, Node("cached_attention", inputs, at, {"heads": node.attributes["heads"], **window})]


def _heads(graph: Graph, node: Node) -> tuple[int, int]:
    """Heads of the keys, which queries may share, and their width."""
    width = int(graph.specs[node.output].shape[2]) // int(node.attributes["heads"])
    return int(graph.specs[node.argument("k")].shape[2]) // width, width


def _key_scales(graph: Graph, context: PassContext) -> dict[str, Weight]:
    """The int8 scale of every channel of every head of keys: the largest magnitude of the calibration split is code 127.

    A rotary pair takes every direction somewhere in the text, so its two channels share the scale of its length.
    """
    attentions = [node for node in graph.nodes if node.op == "attention"]
    turned = {node.output for node in graph.nodes if node.op == "rotary"}
    rows = context.data.calibration.inputs[:_CALIBRATION_ROWS]
    size = max(1, _TOKENS // rows.shape[1])

    def channel_peaks(name: str, keys: Array) -> Array:
        if name not in turned:
            return np.abs(keys).max(axis=(0, 1))
        pairs = keys.reshape(-1, keys.shape[-1] // 2, 2)
        return np.repeat(np.sqrt(np.square(pairs).sum(axis=-1)).max(axis=0), 2)

    names = {node.argument("k") for node in attentions}
    parts = [
        intermediate_values(graph, names, rows[first : first + size], of=channel_peaks)
        for first in range(0, len(rows), size)
    ]
    found = {}
    for node in attentions:
        peak = np.max([part[node.argument("k")] for part in parts], axis=0)
        scales = np.where(peak > 0, peak / CODE_LIMIT, 1).astype(np.float32)
        found[f"{node.output}.key_scale"] = Weight(coarse(scales).reshape(_heads(graph, node)))
    return found
