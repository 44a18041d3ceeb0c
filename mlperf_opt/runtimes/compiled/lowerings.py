"""How each op becomes instructions: the table of lowerings."""

from __future__ import annotations

from mlperf_opt.runtimes.compiled.attention_ops import (
    lower_advance,
    lower_attention,
    lower_cache_write,
    lower_cached_attention,
    lower_head_scale,
    lower_rotary,
)
from mlperf_opt.runtimes.compiled.image_ops import lower_pool
from mlperf_opt.runtimes.compiled.products import lower_codes, lower_float
from mlperf_opt.runtimes.compiled.program import Lower
from mlperf_opt.runtimes.compiled.rows import (
    lower_add,
    lower_elementwise,
    lower_embedding,
    lower_flatten,
    lower_layer_norm,
    lower_positions,
    lower_quantize,
    lower_row_grid,
    lower_softmax,
)

LOWERINGS: dict[str, Lower] = {
    "linear": lower_float,
    "conv2d": lower_float,
    "qlinear": lower_codes,
    "qconv2d": lower_codes,
    "relu": lower_elementwise,
    "gelu": lower_elementwise,
    "add": lower_add,
    "softmax": lower_softmax,
    "layer_norm": lower_layer_norm,
    "flatten": lower_flatten,
    "max_pool2d": lower_pool,
    "avg_pool2d": lower_pool,
    "embedding": lower_embedding,
    "qembedding": lower_embedding,
    "learned_positions": lower_positions,
    "sinusoidal_positions": lower_positions,
    "rotary": lower_rotary,
    "quantize": lower_quantize,
    "row_scale": lower_row_grid,
    "row_zero": lower_row_grid,
    "attention": lower_attention,
    "head_scale": lower_head_scale,
    "cache_write": lower_cache_write,
    "cached_attention": lower_cached_attention,
    "advance": lower_advance,
}
