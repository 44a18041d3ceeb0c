"""The only file that imports `onnx`: plain data -> the bytes of a ModelProto, and the checker."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import checker, helper, numpy_helper, shape_inference

import mlperf_opt
from mlperf_opt.errors import GraphError
from mlperf_opt.onnx_export.lower import OnnxModel
from mlperf_opt.ops import Spec
from mlperf_opt.ops.onnx_form import TYPES, OnnxNode


def serialize(model: OnnxModel, opset: int, ir_version: int, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of the file. Initialisers are inline; equal arguments give equal bytes."""
    graph = helper.make_graph(
        [_node(node) for node in model.nodes],
        model.name,
        [_value(name, spec) for name, spec in model.inputs.items()],
        [_value(name, spec) for name, spec in model.outputs.items()],
        [numpy_helper.from_array(np.asarray(array, order="C"), name) for name, array in model.initializers.items()],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
        producer_name="mlperf_opt",
        producer_version=mlperf_opt.__version__,
    )
    helper.set_model_props(proto, dict(metadata))
    return proto.SerializeToString(deterministic=True)


def check(data: bytes) -> None:
    """Raise `GraphError` unless onnx.checker, with its full check, takes the file."""
    try:
        checker.check_model(onnx.load_model_from_string(data), full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        raise GraphError(f"onnx.checker refuses the model: {' '.join(str(error).split())}") from None


def _node(node: OnnxNode) -> onnx.NodeProto:
    return helper.make_node(node.kind, list(map(str, node.inputs)), [node.output], name=node.output, **node.attributes)


def _value(name: str, spec: Spec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[spec.dtype], list(spec.shape))
