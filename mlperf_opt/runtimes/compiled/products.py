"""Lowering of linear and conv2d, in float32 (weights float32, float16 or int8) and on codes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.graph import Node
from mlperf_opt.kernels import amx, opcodes
from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.jit import features
from mlperf_opt.runtimes.compiled.layout import Value, unsupported
from mlperf_opt.runtimes.compiled.packing import (
    GROUP,
    channels_last,
    pack_floats,
    pack_int8,
    panels_of,
    per_column,
    segments_of,
)
from mlperf_opt.runtimes.compiled.program import Program
from mlperf_opt.runtimes.compiled.sparse_ops import plan_codes, plan_floats

Array = NDArray[Any]
_TILE_FROM = 48  # inputs of a segment: with fewer, most of a 64-byte tile would be filled up
_FLOAT_PRODUCTS = {"float32": opcodes.FLOAT_PRODUCT, "float16": opcodes.HALF_PRODUCT, "int8": opcodes.CODES_PRODUCT}
_LARGEST = np.finfo(np.float32).max


def float_bits(value: float) -> int:
    """The bits of a float32, as a field of an instruction."""
    return int(np.float32(value).view(np.uint32))


def _geometry(program: Program, node: Node, weight: Array) -> tuple[Value, Array, list[int]]:
    """Return the input, the weight as (M, segments, K), and IMAGE_STEP, LINE_STEP, ROW_STEP, LINES, PIXELS, SEGMENT_STEP."""
    name = node.argument("x")
    if weight.ndim == 2:
        x = program.value(name)
        if len(x.shape) != 1:
            raise unsupported(node, f"its input has rows of shape {x.shape}")
        if x.halo:
            x = program.planar(name)
        return x, segments_of(channels_last(weight, x.image)), [0, 0, x.row_step, 1, 0, 0]
    x = program.channels_last(name)
    stride, padding = int(node.attributes["stride"]), int(node.attributes["padding"])
    _, height, width = program.graph.specs[node.output].shape[1:]
    steps = [x.row_step, stride * x.line_step, stride * x.pixel_step, int(height), int(width), x.line_step]
    if x.halo < padding:
        raise unsupported(node, "its padding has no room")
    return x, segments_of(weight), steps


def _input_start(node: Node, x: Value, weight: Array) -> int:
    return x.start() if weight.ndim == 2 else x.start(int(node.attributes["padding"]))


def _out_steps(out: Value) -> list[int]:
    if out.image is None:
        return [0, 0, out.row_step]
    return [out.row_step, out.line_step, out.pixel_step]


def lower_float(program: Program, node: Node) -> None:
    """linear, conv2d: float32 arithmetic on weights as they are stored."""
    argument = node.argument("weight")
    stored, scale = program.stored(argument)
    x, weight, (image_step, line_step, row_step, lines, pixels, segment_step) = _geometry(program, node, stored)
    columns, segments, k = weight.shape
    plan = plan_floats(program, node, weight, scale)
    opcode = _FLOAT_PRODUCTS[str(stored.dtype)]
    if opcode == opcodes.HALF_PRODUCT and "f16c" not in features():
        opcode, weight = opcodes.FLOAT_PRODUCT, weight.astype(np.float32)
    bias = node.argument("bias")
    out = _room(program, node, stored)
    low = 0.0 if node.attributes.get("activation") == "relu" else -math.inf
    scratch = program.scratch(8 * LANES * 4 * segments * k) if opcode != opcodes.FLOAT_PRODUCT else 0
    program.emit(
        opcode, _input_start(node, x, stored), image_step, line_step, row_step, lines, pixels,
        segments, segment_step, k, program.constant(pack_floats(plan.dense(weight))), panels_of(columns), out.start(),
        *_out_steps(out), columns,
        program.constant(per_column(program.weight(bias) if bias else np.zeros(columns), columns, np.float32)),
        program.constant(per_column(np.ones(columns) if scale is None else scale, columns, np.float32)), float_bits(low),
        0, 0, 0, 0, 0, 0, 0, 0, scratch,
    )  # fmt: skip
    plan.attach(program)
    _activate(program, node, out)


def lower_codes(program: Program, node: Node) -> None:
    """qlinear, qconv2d: uint8 x int8 -> int32, then codes or float32."""
    codes = program.weight(node.argument("weight"))
    program.inside(node.argument("x"))
    x, weight, (image_step, line_step, row_step, lines, pixels, segment_step) = _geometry(program, node, codes)
    columns, segments, k = weight.shape
    plan = plan_codes(program, node, weight)
    on_tiles = amx.available() and program.isa == "auto" and k >= _TILE_FROM
    groups = -(-k // GROUP)
    if on_tiles:
        groups = -(-groups // amx.GROUPS_OF_TILE) * amx.GROUPS_OF_TILE
    sums = weight.sum(axis=(1, 2), dtype=np.int64)
    w_scale, y_scale = program.weight(node.argument("w_scale")), node.argument("y_scale")
    bias_name = node.argument("bias")
    bias = program.weight(bias_name) if bias_name else np.zeros(columns, np.int32)
    integer, real = (bias, np.zeros(columns, np.float32)) if bias.dtype == np.int32 else (np.zeros(columns, np.int32), bias)
    dynamic = not program.is_weight(node.argument("x_scale"))
    scale_step = 0
    if dynamic:
        row_scale, row_zero = (program.value(node.argument(a)).start() for a in ("x_scale", "x_zero"))
        scale, scale_step = np.broadcast_to(w_scale, (columns,)), program.value(node.argument("x_scale")).row_step
    else:
        x_scale, x_zero = program.weight(node.argument("x_scale")), program.weight(node.argument("x_zero"))
        # sum (x - zero) w + bias = sum x w + (bias - zero sum w), in arithmetic modulo 2^32 like the accumulators'
        integer = (integer.astype(np.int64) - int(x_zero) * sums).astype(np.uint64).astype(np.uint32).view(np.int32)
        row_scale, row_zero = program.constant(np.ones(1, np.float32)), program.constant(np.zeros(1, np.int32))
        scale = np.broadcast_to(x_scale * w_scale, (columns,))
    y_zero = 0
    if y_scale:
        if dynamic:
            raise unsupported(node, "codes out of rows with scales of their own")
        with np.errstate(over="ignore"):
            scale = np.minimum(scale / program.weight(y_scale), _LARGEST)
        y_zero = int(program.weight(node.argument("y_zero")))
    out = _room(program, node, codes)
    vnni = "avx512vnni" in features() and program.isa != "portable"
    opcode = opcodes.TILE_PRODUCT if on_tiles else opcodes.INT8_PRODUCT if vnni else opcodes.PORTABLE_PRODUCT
    low = 0.0 if node.attributes.get("activation") == "relu" else -math.inf
    rows = min(amx.ROWS, pixels or amx.ROWS)
    program.emit(
        opcode, _input_start(node, x, codes), image_step, line_step, row_step, lines, pixels,
        segments, segment_step, groups, program.constant(pack_int8(plan.dense(weight), groups)), panels_of(columns),
        out.start(), *_out_steps(out), columns, program.constant(per_column(integer, columns, np.int32)),
        program.constant(per_column(scale, columns, np.float32)), float_bits(low), 1 if y_scale else 0, y_zero,
        row_scale, row_zero, scale_step if codes.ndim == 4 else 0, 0 if codes.ndim == 4 else scale_step,
        program.constant(per_column(sums, columns, np.int32)), program.constant(per_column(real, columns, np.float32)),
        program.scratch(amx.SCRATCH_BYTES) if on_tiles else 0, program.constant(amx.configuration(rows)) if on_tiles else 0,
    )  # fmt: skip
    plan.attach(program)
    _activate(program, node, out)


def _room(program: Program, node: Node, weight: Array) -> Value:
    """Room for the product. gelu, behind it, works on whole vectors: it would write beyond the rows of a caller's array."""
    return program.new(node, image=weight.ndim == 4, exact=node.attributes.get("activation") != "gelu")


def _activate(program: Program, node: Node, out: Value) -> None:
    """gelu in place behind the product; relu is part of it."""
    if node.attributes.get("activation") == "gelu":
        start = out.start(out.halo)  # gelu of the zeros around an image is 0
        program.emit(opcodes.GELU, start, start, out.row_step, out.row_step, out.count)
