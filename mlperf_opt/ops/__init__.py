"""The ops that graphs are made of: one `OpDef` each, by name in `OPS`."""

from mlperf_opt.ops.activation import GELU, RELU, SOFTMAX
from mlperf_opt.ops.attention import ATTENTION
from mlperf_opt.ops.base import Array, Cost, OpDef, Spec
from mlperf_opt.ops.conv import CONV2D
from mlperf_opt.ops.embedding import EMBEDDING, LEARNED_POSITIONS, SINUSOIDAL_POSITIONS
from mlperf_opt.ops.kv_cache import ADVANCE, CACHE_WRITE, CACHED_ATTENTION, HEAD_SCALE
from mlperf_opt.ops.linear import LINEAR
from mlperf_opt.ops.loss import CROSS_ENTROPY
from mlperf_opt.ops.norm import LAYER_NORM
from mlperf_opt.ops.pool import AVG_POOL2D, MAX_POOL2D
from mlperf_opt.ops.qembedding import QEMBEDDING
from mlperf_opt.ops.qproduct import QCONV2D, QLINEAR
from mlperf_opt.ops.quantized import DEQUANTIZE, QUANTIZE, ROW_SCALE, ROW_ZERO
from mlperf_opt.ops.rotary import ROTARY
from mlperf_opt.ops.shape import ADD, FLATTEN

_ALL = (
    LINEAR,
    CONV2D,
    RELU,
    GELU,
    SOFTMAX,
    MAX_POOL2D,
    AVG_POOL2D,
    FLATTEN,
    ADD,
    EMBEDDING,
    LEARNED_POSITIONS,
    SINUSOIDAL_POSITIONS,
    ROTARY,
    LAYER_NORM,
    ATTENTION,
    HEAD_SCALE,
    CACHE_WRITE,
    CACHED_ATTENTION,
    ADVANCE,
    CROSS_ENTROPY,
    QUANTIZE,
    DEQUANTIZE,
    ROW_SCALE,
    ROW_ZERO,
    QLINEAR,
    QCONV2D,
    QEMBEDDING,
)
OPS: dict[str, OpDef] = {op.name: op for op in _ALL}

__all__ = ["OPS", "Array", "Cost", "OpDef", "Spec"]
