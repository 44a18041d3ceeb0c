"""The graph that every pass maps and every runtime executes."""

from mlperf_opt.graph.build import GraphBuilder
from mlperf_opt.graph.fusion import Fusion, fuse_graph, unfuse_graph
from mlperf_opt.graph.graph import LENGTHS, POSITION, Graph, Node, State
from mlperf_opt.graph.printing import to_text
from mlperf_opt.graph.serial import array_specs, arrays, graph_hash, rebuild, structure
from mlperf_opt.graph.verify import verify
from mlperf_opt.graph.weight import Affine, Dense, Weight, split_name

__all__ = [
    "LENGTHS",
    "POSITION",
    "Affine",
    "Dense",
    "Fusion",
    "Graph",
    "GraphBuilder",
    "Node",
    "State",
    "Weight",
    "array_specs",
    "arrays",
    "fuse_graph",
    "graph_hash",
    "rebuild",
    "split_name",
    "structure",
    "to_text",
    "unfuse_graph",
    "verify",
]
