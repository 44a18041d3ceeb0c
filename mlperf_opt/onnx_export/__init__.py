"""A graph as an ONNX file. `lower` writes it down as plain data, `proto` alone imports `onnx` and makes the bytes."""

from mlperf_opt.onnx_export.export import IR_VERSION, OPSET, export, input_name, output_name, require_installed

__all__ = ["IR_VERSION", "OPSET", "export", "input_name", "output_name", "require_installed"]
