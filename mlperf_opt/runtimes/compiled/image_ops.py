"""Lowering of pooling."""

from __future__ import annotations

from mlperf_opt.graph import Node
from mlperf_opt.kernels import opcodes
from mlperf_opt.runtimes.compiled.layout import place
from mlperf_opt.runtimes.compiled.program import Program


def lower_pool(program: Program, node: Node) -> None:
    """max_pool2d (float32 or codes) and avg_pool2d."""
    program.inside(node.inputs[0])
    x = program.channels_last(node.inputs[0])
    spec = program.graph.specs[node.output]
    c, h, w = (int(d) for d in spec.shape[1:])
    out = program.keep(node.output, place((c, h, w), spec.dtype, (c, h, w), program.halo(node.output)))
    size, stride = (int(node.attributes[key]) for key in ("size", "stride"))
    opcode = opcodes.MAX_POOL if node.op == "max_pool2d" else opcodes.AVERAGE_POOL
    program.emit(
        opcode, x.start(), out.start(), x.row_step, out.row_step, c, h, w, x.line_step, out.line_step, size, stride,
        x.itemsize,
    )  # fmt: skip
