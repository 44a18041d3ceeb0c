"""Lowering of what works row by row: activations, norms, lookups, positions, quantization, attention."""

from __future__ import annotations

import numpy as np

from mlperf_opt.graph import Node
from mlperf_opt.kernels import elementwise, opcodes
from mlperf_opt.ops.embedding import sinusoid_table
from mlperf_opt.runtimes.compiled.layout import Value, place, unsupported
from mlperf_opt.runtimes.compiled.products import float_bits
from mlperf_opt.runtimes.compiled.program import Program

_ELEMENTWISE = {"relu": opcodes.RELU, "gelu": opcodes.GELU}
_TABLES = {"float32": elementwise.TABLE_FLOAT, "float16": elementwise.TABLE_HALF, "int8": elementwise.TABLE_CODES}


def _like(program: Program, node: Node, x: Value, dtype: str) -> Value:
    """Room for the node's value in the order of ``x``, which is that of its elements."""
    halo = program.halo(node.output) if len(x.shape) == 3 and x.image else 0
    return program.keep(node.output, place(x.shape, dtype, x.image, halo))


def lower_elementwise(program: Program, node: Node) -> None:
    """relu, gelu: the order of the elements doesn't matter."""
    x = program.inside(node.inputs[0])
    if x.image and x.halo != program.halo(node.output):
        x = program.planar(node.inputs[0])
    out = _like(program, node, x, "float32")
    program.emit(_ELEMENTWISE[node.op], x.start(x.halo), out.start(out.halo), x.row_step, out.row_step, out.count)


def lower_add(program: Program, node: Node) -> None:
    """add: both sides in one order."""
    x, y = (program.inside(name) for name in node.inputs)
    if x.image != y.image or x.halo != y.halo or (x.image and x.halo != program.halo(node.output)):
        x, y = (program.planar(name) for name in node.inputs)
    out = _like(program, node, x, "float32")
    program.emit(
        opcodes.ADD, x.start(x.halo), out.start(out.halo), x.row_step, out.row_step, out.count, y.start(y.halo), y.row_step
    )


def _flat(program: Program, node: Node, name: str) -> Value:
    x = program.planar(name)
    if len(x.shape) != 1:
        raise unsupported(node, f"its input has rows of shape {x.shape}")
    return x


def lower_softmax(program: Program, node: Node) -> None:
    """softmax over the last axis."""
    x = _flat(program, node, node.inputs[0])
    out = program.new(node, exact=True)
    program.emit(opcodes.SOFTMAX, x.start(), out.start(), x.row_step, out.row_step, out.count)


def lower_layer_norm(program: Program, node: Node) -> None:
    """layer_norm over the last axis."""
    program.inside(node.argument("x"))
    x = _flat(program, node, node.argument("x"))
    gamma, beta = (program.constant(program.weight(node.argument(a))) for a in ("gamma", "beta"))
    out, eps = program.new(node), float_bits(float(node.attributes["eps"]))
    program.emit(opcodes.LAYER_NORM, x.start(), out.start(), x.row_step, out.row_step, out.count, gamma, beta, eps)


def lower_flatten(program: Program, node: Node) -> None:
    """flatten: the same memory; how its elements are ordered stays known."""
    name = node.inputs[0]
    value = program.value(name)
    if value.halo:
        value = program.planar(name)
    shape = (int(np.prod(value.shape)),)
    image = value.image
    if image and (image[0] == 1 or image[1] * image[2] == 1):
        image = None
    program.alias(node.output, Value(shape, value.dtype, value.memory, value.offset, value.row_step, image))


def lower_embedding(program: Program, node: Node) -> None:
    """embedding, qembedding: rows of a table."""
    tokens = program.value(node.argument("tokens"))
    table, scale = program.stored(node.argument("table"))
    scales = np.ones(1, np.float32) if scale is None else np.broadcast_to(scale, (len(table),))
    out = program.new(node)
    program.emit(
        opcodes.EMBEDDING, tokens.start(), out.start(), tokens.row_step, out.row_step, out.count,
        program.constant(table), table.shape[1] * table.itemsize, _TABLES[str(table.dtype)], program.constant(scales),
        len(table),
    )  # fmt: skip


def lower_positions(program: Program, node: Node) -> None:
    """learned_positions, sinusoidal_positions: a row of a table added by place."""
    program.inside(node.argument("x"))
    x = _flat(program, node, node.argument("x"))
    if node.op == "learned_positions":
        table, scale = program.stored(node.argument("table"))
        if scale is not None:  # nothing quantizes it today
            table = program.weight(node.argument("table"))
    else:
        table = sinusoid_table(int(node.attributes["context"]), x.count)
    out = program.new(node)
    program.emit(
        opcodes.POSITION_TABLE, x.start(), out.start(), x.row_step, out.row_step, out.count, program.constant(table),
        table.shape[1] * table.itemsize, _TABLES[str(table.dtype)], 0, len(table), 1 if node.argument("offset") else 0,
    )  # fmt: skip


def lower_quantize(program: Program, node: Node) -> None:
    """quantize, with one grid for all or one for each row."""
    name = node.argument("x")
    dynamic = not program.is_weight(node.argument("scale"))
    if dynamic:
        scale, zero = (program.value(node.argument(a)).start() for a in ("scale", "zero"))
    else:
        scale = program.constant(program.weight(node.argument("scale")).reshape(1))
        zero = program.constant(program.weight(node.argument("zero")).astype(np.int32).reshape(1))
    if len(program.value(name).shape) == 3:
        x = program.channels_last(name)
        out = program.new(node, image=True)
        assert out.image is not None
        c, h, w = out.image
        before = out.start() - out.start(out.halo)
        program.emit(
            opcodes.QUANTIZE_IMAGE, x.start(), out.start(), x.row_step, out.row_step, c, h, w, x.line_step, out.line_step,
            scale, zero, 1 if dynamic else 0, out.count, before,
        )  # fmt: skip
        return
    x = program.value(name)
    out = _like(program, node, x, "uint8")
    program.emit(
        opcodes.QUANTIZE, x.start(), out.start(), x.row_step, out.row_step, out.count, scale, zero, 1 if dynamic else 0
    )


def lower_row_grid(program: Program, node: Node) -> None:
    """row_scale and row_zero of one value are found together, by the first of the two."""
    if node.output in program.values:
        return
    name = node.inputs[0]
    x = program.value(name)
    if x.halo:
        x = program.planar(name)
    if int(node.attributes["axes"]) != len(x.shape):
        raise unsupported(node, f"axes={node.attributes['axes']} of rows of shape {x.shape}")
    twins = {n.op: n.output for n in reversed(program.graph.consumers(name)) if n.op in ("row_scale", "row_zero")}
    places = {}
    for op, dtype in (("row_scale", "float32"), ("row_zero", "int32")):
        twin = twins.get(op, f"{node.output} {op}")
        row = Value((1,) * len(x.shape), dtype, 0, -1, 4)
        places[op] = program.keep(twin, row)
    program.emit(
        opcodes.ROW_GRIDS, x.start(), 0, x.row_step, 0, x.count, places["row_scale"].start(), places["row_zero"].start()
    )


def lower_dequantize(program: Program, node: Node) -> None:
    """Our graphs dequantize inside products; a graph that does it elsewhere runs in numpy."""
    raise unsupported(node, "codes become float32 inside products only")
