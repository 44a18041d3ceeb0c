"""What an instruction can ask for: its first field. `machine.py` has the kernel of each."""

from __future__ import annotations

(
    FLOAT_PRODUCT, HALF_PRODUCT, CODES_PRODUCT, INT8_PRODUCT, PORTABLE_PRODUCT, TILE_PRODUCT, SPARSE_PRODUCT, RELU, GELU,
    ADD, SOFTMAX, LAYER_NORM, EMBEDDING, POSITION_TABLE, QUANTIZE, ROW_GRIDS, COPY, PACK_IMAGE, UNPACK_IMAGE, QUANTIZE_IMAGE,
    MAX_POOL, AVERAGE_POOL, ATTENTION, ROTARY, HEAD_SCALE, CACHE_WRITE, CACHED_ATTENTION, PROMPT_ATTENTION,
) = range(28)  # fmt: skip
# What a kernel returns: the opcode of another, which is to run on the same instruction instead; or one of these.
DONE, OUT_OF_RANGE = -1, -2  # OUT_OF_RANGE: a token that the table has no row for
