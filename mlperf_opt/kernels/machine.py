"""The machine: runs a program, an array of instructions, over chunks of a batch. Nothing is compiled per network.

An instruction's first field is its opcode: the place of its kernel in a table of addresses. `run` is one native call for a
whole batch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from mlperf_opt.kernels import amx, attention, elementwise, images, kv_cache, opcodes, product, prompt, sparse
from mlperf_opt.kernels.emit import I64, at, instruction, ir
from mlperf_opt.kernels.instruction import INPUT, LENGTHS, OUTPUT, POSITIONS, SEQUENCE, TIME, WIDTH, field
from mlperf_opt.kernels.jit import addresses, kernel
from mlperf_opt.kernels.opcodes import OUT_OF_RANGE
from mlperf_opt.kernels.simd import load_int, store_int

_INSTRUCTION_BYTES = 8 * WIDTH
# A job: what `run` wants to know, as int64 at these places.
# MOVES_ON is 1 where the sequences hold their new places afterwards, 0 for a part of a program.
PROGRAM, COUNT, MEMORY_TABLE, CHUNK, INPUT_STEP, OUTPUT_STEP, KERNEL_TABLE, MOVES_ON = range(8)
JOB_WIDTH = 8

KERNELS = {
    opcodes.FLOAT_PRODUCT: product.float_product,
    opcodes.HALF_PRODUCT: product.half_product,
    opcodes.CODES_PRODUCT: product.codes_product,
    opcodes.INT8_PRODUCT: product.int8_product,
    opcodes.PORTABLE_PRODUCT: product.portable_product,
    opcodes.TILE_PRODUCT: amx.product_on_tiles,
    opcodes.SPARSE_PRODUCT: sparse.sparse_product,
    opcodes.RELU: elementwise.relu,
    opcodes.GELU: elementwise.gelu,
    opcodes.ADD: elementwise.add_rows,
    opcodes.SOFTMAX: elementwise.softmax,
    opcodes.LAYER_NORM: elementwise.layer_norm,
    opcodes.EMBEDDING: elementwise.embedding,
    opcodes.POSITION_TABLE: elementwise.positions,
    opcodes.QUANTIZE: elementwise.quantize,
    opcodes.ROW_GRIDS: elementwise.row_grids,
    opcodes.COPY: elementwise.copy,
    opcodes.PACK_IMAGE: images.pack_image,
    opcodes.UNPACK_IMAGE: images.unpack_image,
    opcodes.QUANTIZE_IMAGE: images.quantize_image,
    opcodes.MAX_POOL: images.max_pool,
    opcodes.AVERAGE_POOL: images.average_pool,
    opcodes.ATTENTION: attention.attention,
    opcodes.ROTARY: attention.rotary,
    opcodes.HEAD_SCALE: kv_cache.head_scale,
    opcodes.CACHE_WRITE: kv_cache.cache_write,
    opcodes.CACHED_ATTENTION: kv_cache.cached_attention,
    opcodes.PROMPT_ATTENTION: prompt.prompt_attention,
}
_table = np.zeros(len(KERNELS), np.int64)


def kernel_table(wanted: Collection[int]) -> NDArray[np.int64]:
    """Return the table, in which the kernels of these opcodes are ready: compiled now where they are new."""
    left_to = (KERNELS[opcode].leaves_to for opcode in wanted)
    missing = [o for o in {*wanted, *left_to} if o is not None and not _table[o]]
    if missing:
        _table[missing] = addresses(KERNELS[opcode] for opcode in missing)
    return _table


@instruction(types.int64, *[types.int64] * 4)
def _call(b: Any, kernel_: Any, instruction_: Any, memories: Any, rows: Any) -> Any:
    """What the kernel at an address returns."""
    return b.call(at(b, kernel_, ir.FunctionType(I64, [I64] * 3)), [instruction_, memories, rows])


@kernel("boolean(int64, int64, int64, int64, int64, int64, int64, int64)")
def run(job, x, out, lengths, positions, first, last, time):
    """Run a program on the sequences ``first`` to ``last`` of a batch, a chunk at a time.

    Args:
        job: address of JOB_WIDTH int64.
        x: address of the batch: float32, or int64 tokens.
        out: address of room for the outputs.
        lengths: address of the new places of each sequence, int64, with a cache.
        positions: address of the places that each sequence holds, int64, with a cache.
        first, last: sequences (rows, where there is no time).
        time: rows of a sequence, 1 where there is no time.

    Returns:
        False for a token id that is out of range: nothing was read or written beside the tables, and no position moved. What
        earlier chunks wrote lies behind their positions, but for a ring that is full.
    """
    program, count, memories, start = field(job, PROGRAM), field(job, COUNT), field(job, MEMORY_TABLE), first
    kernels, chunk = field(job, KERNEL_TABLE), max(1, field(job, CHUNK) // time)
    store_int(memories + 8 * TIME, time)
    while first < last:
        now = min(chunk, last - first)
        store_int(memories + 8 * INPUT, x + first * time * field(job, INPUT_STEP))
        store_int(memories + 8 * OUTPUT, out + first * time * field(job, OUTPUT_STEP))
        store_int(memories + 8 * LENGTHS, lengths + 8 * first)
        store_int(memories + 8 * POSITIONS, positions + 8 * first)
        store_int(memories + 8 * SEQUENCE, first)
        for i in range(count):
            current = program + i * _INSTRUCTION_BYTES
            opcode = field(current, 0)
            while opcode >= 0:  # a kernel may leave an instruction to another
                address = field(kernels, opcode)
                if address == 0:
                    raise AssertionError("an instruction was left to a kernel that is not ready")
                opcode = _call(address, current, memories, now * time)
            if opcode == OUT_OF_RANGE:
                return False
        first += now
    if field(job, MOVES_ON):
        for sequence in range(start, last):
            here = positions + 8 * sequence
            store_int(here, load_int(here) + load_int(lengths + 8 * sequence))
    return True


@kernel("boolean(int64, Array(float32, 1, 'C', readonly=True), Array(float32, 1, 'C'), int64, int64, int64)")
def run_arrays(job, x, out, first, last, time):
    """`run` on float32 arrays, of a program without state: where they lie costs a microsecond to ask numpy for."""
    return run(job, x.ctypes.data, out.ctypes.data, 0, 0, first, last, time)
