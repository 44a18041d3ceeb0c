"""The machine: runs a program, an array of instructions, over chunks of a batch. Nothing is compiled per network.

A program's first field is the opcode. `run` is one native call for a whole batch.
"""

from __future__ import annotations

from mlperf_opt.kernels import amx as _amx
from mlperf_opt.kernels import attention as _attention
from mlperf_opt.kernels import elementwise as _elementwise
from mlperf_opt.kernels import images as _images
from mlperf_opt.kernels import kv_cache as _kv_cache
from mlperf_opt.kernels import sparse as _sparse
from mlperf_opt.kernels.instruction import INPUT, LENGTHS, OUTPUT, POSITIONS, WIDTH, field
from mlperf_opt.kernels.jit import kernel
from mlperf_opt.kernels.product import PIXELS
from mlperf_opt.kernels.product import product as _product
from mlperf_opt.kernels.simd import load_int, store_int

(
    PRODUCT, RELU, GELU, ADD, SOFTMAX, LAYER_NORM, EMBEDDING, POSITION_TABLE, QUANTIZE, ROW_GRIDS, PACK_IMAGE, UNPACK_IMAGE,
    QUANTIZE_IMAGE, MAX_POOL, AVERAGE_POOL, ATTENTION, CACHE_WRITE, CACHED_ATTENTION, COPY, TILE_PRODUCT,
    SPARSE_PRODUCT, ROTARY, HEAD_SCALE,
) = range(23)  # fmt: skip
_INSTRUCTION_BYTES = 8 * WIDTH
# A job: what `run` wants to know, as int64 at these places.
PROGRAM, COUNT, MEMORY_TABLE, CHUNK, INPUT_STEP, OUTPUT_STEP = range(6)
JOB_WIDTH = 6

TILE_ROWS = _amx.ROWS
_product_if_sparse = _sparse.sparse_product
_product_on_tiles = _amx.product_on_tiles
_relu, _gelu, _add, _softmax = _elementwise.relu, _elementwise.gelu, _elementwise.add_rows, _elementwise.softmax
_layer_norm, _embedding, _positions = _elementwise.layer_norm, _elementwise.embedding, _elementwise.positions
_quantize, _row_grids = _elementwise.quantize, _elementwise.row_grids
_pack, _unpack, _quantize_image = _images.pack_image, _images.unpack_image, _images.quantize_image
_max_pool, _average_pool = _images.max_pool, _images.average_pool
_copy = _elementwise.copy
_attend, _rotary = _attention.attention, _attention.rotary
_head_scale, _write, _attend_cached = _kv_cache.head_scale, _kv_cache.cache_write, _kv_cache.cached_attention


@kernel(inline=True)
def _step(instruction, memories, sequence_of_state, sequences, time):
    """One instruction, on ``sequences`` x ``time`` rows. False where its input is out of range."""
    rows = sequences * time
    opcode = field(instruction, 0)
    if opcode == SPARSE_PRODUCT:  # the dense product's opcode, where that is to run instead
        opcode = _product_if_sparse(instruction, memories, rows)
    if opcode == PRODUCT or (opcode == TILE_PRODUCT and rows < TILE_ROWS and field(instruction, PIXELS) == 0):
        _product(instruction, memories, rows)
    elif opcode == TILE_PRODUCT:
        _product_on_tiles(instruction, memories, rows)
    elif opcode == RELU:
        _relu(instruction, memories, rows)
    elif opcode == GELU:
        _gelu(instruction, memories, rows)
    elif opcode == ADD:
        _add(instruction, memories, rows)
    elif opcode == SOFTMAX:
        _softmax(instruction, memories, rows)
    elif opcode == LAYER_NORM:
        _layer_norm(instruction, memories, rows)
    elif opcode == EMBEDDING:
        return _embedding(instruction, memories, rows)
    elif opcode == POSITION_TABLE:
        _positions(instruction, memories, load_int(memories + 8 * POSITIONS), sequences, time)
    elif opcode == ROTARY:
        _rotary(instruction, memories, load_int(memories + 8 * POSITIONS), sequences, time)
    elif opcode == HEAD_SCALE:
        _head_scale(instruction, memories, rows)
    elif opcode == QUANTIZE:
        _quantize(instruction, memories, rows)
    elif opcode == ROW_GRIDS:
        _row_grids(instruction, memories, rows)
    elif opcode == PACK_IMAGE:
        _pack(instruction, memories, rows)
    elif opcode == UNPACK_IMAGE:
        _unpack(instruction, memories, rows)
    elif opcode == QUANTIZE_IMAGE:
        _quantize_image(instruction, memories, rows)
    elif opcode == MAX_POOL:
        _max_pool(instruction, memories, rows)
    elif opcode == AVERAGE_POOL:
        _average_pool(instruction, memories, rows)
    elif opcode == COPY:
        _copy(instruction, memories, rows)
    elif opcode == ATTENTION:
        _attend(instruction, memories, sequences, time)
    elif opcode == CACHE_WRITE:
        lengths, offsets = load_int(memories + 8 * LENGTHS), load_int(memories + 8 * POSITIONS)
        _write(instruction, memories, lengths, offsets, sequence_of_state, sequences, time)
    elif opcode == CACHED_ATTENTION:
        _attend_cached(instruction, memories, load_int(memories + 8 * POSITIONS), sequence_of_state, sequences, time)
    return True


@kernel("boolean(int64, Array(float32, 1, 'C', readonly=True), Array(float32, 1, 'C'), int64, int64, int64, int64, int64)")
def run(job, x, out, lengths, positions, first, last, time):
    """Run a program on the sequences ``first`` to ``last`` of a batch, a chunk at a time.

    Args:
        job: address of JOB_WIDTH int64.
        x: the batch: float32, or int64 tokens seen as float32.
        out: room for the outputs.
        lengths: address of the new places of each sequence, int64, with a cache.
        positions: address of the places that each sequence holds, int64, with a cache.
        first, last: sequences (rows, where there is no time).
        time: rows of a sequence, 1 where there is no time.

    Returns:
        False for a token id that is out of range: nothing was read or written beside the tables.
    """
    program, count, memories = field(job, PROGRAM), field(job, COUNT), field(job, MEMORY_TABLE)
    chunk = max(1, field(job, CHUNK) // time)
    while first < last:
        now = min(chunk, last - first)
        store_int(memories + 8 * INPUT, x.ctypes.data + first * time * field(job, INPUT_STEP))
        store_int(memories + 8 * OUTPUT, out.ctypes.data + first * time * field(job, OUTPUT_STEP))
        store_int(memories + 8 * LENGTHS, lengths + 8 * first)
        store_int(memories + 8 * POSITIONS, positions + 8 * first)
        for i in range(count):
            if not _step(program + i * _INSTRUCTION_BYTES, memories, first, now, time):
                return False
        first += now
    return True
