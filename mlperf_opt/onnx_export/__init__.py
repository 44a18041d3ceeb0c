"""A graph as an ONNX file. `lower` writes it down as plain data, `proto` alone imports `onnx` and makes the bytes."""

from mlperf_opt.onnx_export.lower import input_name, output_name
from mlperf_opt.onnx_export.onnx_file import IR_VERSION, OPSET, export

__all__ = ["IR_VERSION", "OPSET", "export", "input_name", "output_name"]
