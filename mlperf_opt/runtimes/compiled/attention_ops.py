"""Lowering of attention, whole and on a cache, and of rotary."""

from __future__ import annotations

import math

import numpy as np

from mlperf_opt.graph import Graph, Node
from mlperf_opt.kernels import kv_cache, opcodes
from mlperf_opt.kernels.blocks import block_bytes
from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.jit import features
from mlperf_opt.ops import Spec
from mlperf_opt.ops.rotary import frequencies, rotation_rows
from mlperf_opt.runtimes.compiled.layout import unsupported
from mlperf_opt.runtimes.compiled.program import Program

_FLOAT = 4
_KINDS = {"float32": kv_cache.FLOAT, "float16": kv_cache.HALF, "int8": kv_cache.CODES}


def lower_attention(program: Program, node: Node) -> None:
    """attention over whole sequences."""
    q, k, v = (program.inside(name) for name in node.inputs)
    out = program.new(node)
    heads = int(node.attributes["heads"])
    width = out.count // heads
    scratch = program.scratch(block_bytes(program.rows, width))
    program.emit(
        opcodes.ATTENTION, q.start(), k.start(), v.start(), out.start(), q.row_step, k.row_step, v.row_step, out.row_step,
        heads, width, int(node.attributes["causal"]), scratch, out.count // k.count,
    )  # fmt: skip


def lower_rotary(program: Program, node: Node) -> None:
    """rotary: tables whose rows are filled up to whole vectors by further heads; all nodes of one kind read the same."""
    x, out = program.inside(node.argument("x")), program.new(node)
    width, context = int(node.attributes["width"]), int(node.attributes["context"])
    heads = math.lcm(width, LANES) // width
    kind = f"{context} {width}"
    cosines, sines = rotation_rows(context, width)
    program.emit(
        opcodes.ROTARY, x.start(), out.start(), x.row_step, out.row_step, out.count,
        program.shared_constant(f"cosines {kind}", np.tile(cosines, heads)),
        program.shared_constant(f"sines {kind}", np.tile(sines, heads)),
        heads * width, context, 1 if node.argument("offset") else 0,
        program.shared_constant(f"frequencies {kind}", np.tile(np.repeat(frequencies(width), 2), heads)),
        int(node.attributes.get("reach", 0)),
        program.shared_scratch(f"turns {kind}", _FLOAT * (2 * LANES + 2 * heads * width)),
    )  # fmt: skip


def lower_head_scale(program: Program, node: Node) -> None:
    """head_scale."""
    x, out = program.inside(node.argument("x")), program.new(node)
    heads = int(node.attributes["heads"])
    width = x.count // heads
    program.emit(opcodes.HEAD_SCALE, 0, 0, heads, width, 0, 0, 0, 0, x.start(), out.start(), x.row_step, out.row_step)


def lower_cache_write(program: Program, node: Node) -> None:
    """cache_write: keys are kept in panels. The places of a state are filled in when a session starts."""
    cache, new, scale = node.argument("cache"), program.inside(node.argument("new")), node.argument("scale")
    spec = program.graph.specs[cache]
    heads, width = int(spec.shape[1]), int(spec.shape[3])
    if spec.dtype == "float16" and "f16c" not in features():
        raise unsupported(node, "this CPU has no instruction that rounds to float16")
    scales, where, step = kv_cache.NO_SCALE, 0, 0
    scratch = program.scratch(_FLOAT * max(padded(width), LANES**2))  # a vector, or 16 of 16 numbers
    if program.is_weight(scale):
        scales, where = kv_cache.BY_CHANNEL, program.constant(program.weight(scale))
    elif scale:
        if in_panels(program.graph, cache):
            raise unsupported(node, "keys with a scale for each vector")
        scales, where, step = kv_cache.BY_VECTOR, program.value(scale).start(), program.value(scale).row_step
    program.emit(
        opcodes.CACHE_WRITE, 0, 0, heads, width, _KINDS[spec.dtype], *_window(node), scratch,
        program.state(cache), new.start(), new.row_step, int(in_panels(program.graph, cache)), scales, where, step,
    )  # fmt: skip


def lower_cached_attention(program: Program, node: Node) -> None:
    """cached_attention: reads what cache_write has put there."""
    q, out = program.inside(node.argument("q")), program.new(node)
    spec = program.graph.specs[node.argument("keys")]
    heads = int(node.attributes["heads"])
    shared, width = heads // int(spec.shape[1]), int(spec.shape[3])
    sinks, window = _window(node)
    key_scale, value_scales, far, far_step = 0, 0, 0, 0
    if node.argument("key_scale"):
        key_scale = program.constant(program.weight(node.argument("key_scale")))
        value_scales = _state(program, node.argument("value_scale"))
    if node.argument("q_sinks"):
        far_query = program.inside(node.argument("q_sinks"))
        far, far_step = far_query.start(), far_query.row_step
    # of a step: a query, the scores of the sinks, the scores
    step = _FLOAT * (padded(width) + padded(sinks) + padded(program.rows))
    scratch = program.scratch(max(step, block_bytes(program.rows, width)))
    program.emit(
        opcodes.CACHED_ATTENTION, 0, 0, heads, width, _KINDS[spec.dtype], sinks, window, scratch, q.start(), q.row_step,
        _state(program, node.argument("keys")), _state(program, node.argument("values")), out.start(), out.row_step,
        shared, key_scale, value_scales, far, far_step,
    )  # fmt: skip


def _window(node: Node) -> tuple[int, int]:
    return int(node.attributes.get("sinks", 0)), int(node.attributes.get("window", 0))


def _state(program: Program, update: str) -> int:
    """The reference to the state that has this update."""
    return program.state(next(state.name for state in program.graph.state if state.update == update))


def lower_advance(_program: Program, _node: Node) -> None:
    """advance: the session moves the positions itself."""


def padded(places: int) -> int:
    """Places of whole panels, or numbers of whole vectors."""
    return -(-places // LANES) * LANES


def in_panels(graph: Graph, state: str) -> bool:
    """Whether a state lies in panels: keys, and the scales of values, whose width is 1. Values lie [places][width]."""
    update = next(s.update for s in graph.state if s.name == state)
    return not any(node.op == "cached_attention" and node.argument("values") == update for node in graph.nodes)


def state_shape(spec: Spec, panels: bool, batch: int, length: int) -> tuple[int, ...]:
    """The shape of a cache as the kernels keep it: (N, heads, L / 16, d, 16) or (N, heads, L, d), in whole vectors."""
    heads, width = int(spec.shape[1]), int(spec.shape[3])
    if panels:
        return batch, heads, padded(length) // LANES, width, LANES
    return batch, heads, padded(length), padded(width)
