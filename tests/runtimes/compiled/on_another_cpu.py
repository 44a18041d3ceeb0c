"""Run by a test in a process of its own: compute a set of graphs, for whatever CPU the environment names, into a file."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from compiled_cases import model, observed, runtime

from mlperf_opt.kernels import amx
from mlperf_opt.kernels.jit import features

GRAPHS = [(name, before) for name in ("mlp", "cnn", "transformer") for before in ("none", "static", "dynamic", "fp16")]
GRAPHS += [("lenet5", "static"), ("mlp", "weight_only"), ("cnn", "weight_only")]


def compute():
    """Return name -> output, and the values of the nodes of graphs whose floats differ from CPU to CPU."""
    found = {}
    for name, before in GRAPHS:
        graph, inputs = model(name, before)
        for rows in (1, 7, 40):
            found[f"{name} {before} {rows}"] = runtime().prepare(graph)(inputs[:rows])
        found |= {f"{name} {before} {node}": value for node, value in observed(graph, inputs[:7]).items()}
    graph, inputs = model("transformer", "none", True)
    session = runtime().prepare(graph).start(3, 16)
    session.prefill(inputs[:3, :5], np.array([2, 5, 3]))
    found["session"] = session.decode(inputs[:3, 5])
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], features=np.array(sorted(features()), "U20"), amx=np.array(amx.available()), **compute())
