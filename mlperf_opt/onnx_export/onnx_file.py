"""Graph -> the bytes of an ONNX file, checked. Nothing here imports `onnx` before it is needed: help answers at once."""

from __future__ import annotations

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Graph, graph_hash
from mlperf_opt.onnx_export.lower import lower

# The lowest opset that has every operator of the mappings: LayerNormalization came with 17, Gelu with 20. Its IR version is
# 9 (onnx 1.15), so that every onnxruntime since 1.17 reads the file.
OPSET, IR_VERSION = 20, 9
_MOST_BYTES = 2**31 - 1  # a protobuf can't be larger, and initialisers are always inline


def export(graph: Graph, *, check: bool = True) -> bytes:
    """Return ``graph`` as an ONNX file: the same bytes for the same graph.

    Args:
        graph: any graph; a KV cache becomes inputs ``past.*`` and outputs ``present.*``.
        check: run onnx.checker with its full check (types and shapes of every value).

    Raises:
        GraphError: an op without an ONNX counterpart, a model beyond 2 GB, or one that the checker refuses.
    """
    from mlperf_opt.onnx_export import proto

    model = lower(graph)
    size = sum(array.nbytes for array in model.initializers.values())
    if size > _MOST_BYTES:
        raise GraphError(f"{graph.name}: weights of {size:,} bytes don't fit an ONNX file with inline initialisers (2 GB)")
    data = proto.serialize(model, OPSET, IR_VERSION, {"graph_sha256": graph_hash(graph)})
    if check:
        proto.check(data)
    return data
