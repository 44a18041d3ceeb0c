"""Model files: a graph in one compact, checked safetensors file; and plain safetensors files of named arrays."""

from mlperf_opt.artifacts.model_file import SavedModel, is_model_file, load_graph, save_graph
from mlperf_opt.artifacts.weights import load_arrays, load_metadata, load_weights, save_arrays

__all__ = [
    "SavedModel",
    "is_model_file",
    "load_arrays",
    "load_graph",
    "load_metadata",
    "load_weights",
    "save_arrays",
    "save_graph",
]
