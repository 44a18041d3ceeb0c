"""Lowering of attention, whole and on a cache."""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.graph import Graph, Node, State
from mlperf_opt.kernels import machine
from mlperf_opt.kernels.emit import LANES
from mlperf_opt.ops.rotary import rotation_rows
from mlperf_opt.runtimes.compiled.program import Program

_FLOAT = 4


def lower_attention(program: Program, node: Node) -> None:
    """attention over whole sequences."""
    q, k, v = (program.inside(name) for name in node.inputs)
    out = program.new(node)
    heads = int(node.attributes["heads"])
    width = out.count // heads
    shared = out.count // k.count
    places = padded(program.rows)
    scratch = program.scratch(_FLOAT * places * (width + 1))  # the keys of a head, transposed, and scores
    program.emit(
        machine.ATTENTION, q.start(), k.start(), v.start(), out.start(), q.row_step, k.row_step, v.row_step, out.row_step,
        heads, width, int(node.attributes["causal"]), scratch, 0, shared,
    )  # fmt: skip


def lower_rotary(program: Program, node: Node) -> None:
    """rotary: tables whose rows are filled up to whole vectors by further heads; all nodes of one kind read the same."""
    x, out = program.inside(node.argument("x")), program.new(node)
    width, context = int(node.attributes["width"]), int(node.attributes["context"])
    heads = math.lcm(width, LANES) // width
    names = (f"cosines {context} {width}", f"sines {context} {width}")
    tables = (np.tile(rows, heads) for rows in rotation_rows(context, width))
    cosines, sines = (program.shared_constant(name, table) for name, table in zip(names, tables, strict=True))
    program.emit(
        machine.ROTARY, x.start(), out.start(), x.row_step, out.row_step, out.count, cosines, sines,
        heads * width, context, 1 if node.argument("offset") else 0,
    )  # fmt: skip


def lower_cache_write(program: Program, node: Node) -> None:
    """cache_write: keys are kept transposed. The places of a state are filled in when a session starts."""
    cache, new = node.argument("cache"), program.value(node.argument("new"))
    heads, width = (int(d) for d in (program.graph.specs[cache].shape[i] for i in (1, 3)))
    keys = int(holds_keys(program.graph, cache))
    program.emit(
        machine.CACHE_WRITE, program.state(cache), new.start(), new.row_step, keys, 0, 0, 0, 0, heads, width, 0, 0, 0
    )


def lower_cached_attention(program: Program, node: Node) -> None:
    """cached_attention: reads what cache_write has put there."""
    updates = {state.update: state.name for state in program.graph.state}
    keys, values = (program.state(updates[node.argument(a)]) for a in ("keys", "values"))
    q, out = program.value(node.argument("q")), program.new(node)
    heads = int(node.attributes["heads"])
    shared = heads // int(program.graph.specs[node.argument("keys")].shape[1])
    scratch = program.scratch(_FLOAT * padded(program.rows))
    program.emit(
        machine.CACHED_ATTENTION, q.start(), keys, values, out.start(), q.row_step, 0, 0, out.row_step, heads,
        out.count // heads, 1, scratch, 0, shared,
    )  # fmt: skip


def lower_advance(_program: Program, _node: Node) -> None:
    """advance: the session moves the positions itself."""


def padded(places: int) -> int:
    """Places of a row of transposed keys: whole vectors."""
    return -(-places // LANES) * LANES


def holds_keys(graph: Graph, state: str) -> bool:
    """Whether a state is read as keys (or as values)."""
    update = next(s.update for s in graph.state if s.name == state)
    return any(node.op == "cached_attention" and node.argument("keys") == update for node in graph.nodes)


def state_floats(graph: Graph, state: State, batch: int, length: int) -> int:
    """float32 of a cache as the kernels keep it: keys (N, heads, d, L), values (N, heads, L, d), rows of whole vectors."""
    _, heads, _, width = state.spec.shape
    if not holds_keys(graph, state.name):
        width = -(-int(width) // LANES) * LANES
    return batch * int(heads) * int(width) * padded(length)
