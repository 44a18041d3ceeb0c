"""Which matrices mind being pruned or sharing values: each alone, all others as they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlperf_opt.graph import Dense, Graph
from mlperf_opt.passes.base import Pass, PassContext
from mlperf_opt.passes.cluster import Cluster
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.watching import calibration_accuracy

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
BITS = (2, 3, 4, 5, 6, 8)


def sensitivity(graph: Graph, context: PassContext) -> list[dict[str, Any]]:
    """Return a row for each matrix and setting: the share of the calibration split's targets that is predicted, untrained.

    Pruning is one shot by magnitude; values are shared as by the pass `cluster` at its defaults, which float32 weights alone
    can be.
    """
    before = calibration_accuracy(graph, context.data, context.runtime)
    rows: list[dict[str, Any]] = []
    for name, node in graph.matrices().items():
        others = tuple(other for other in graph.matrices() if other != name)
        trials: list[tuple[str, float, Pass]] = [("sparsity", s, Prune(sparsity=s, skip=others)) for s in SPARSITIES]
        weight = graph.weights[name]
        if isinstance(weight.encoding, Dense) and weight.values.dtype == np.float32:
            trials += [("bits", bits, Cluster(bits=bits, skip=others)) for bits in BITS]
        for setting, value, trial in trials:
            context.progress(f"{name} at {setting} {value:g}")
            silent = PassContext(context.data, context.seed, context.runtime)
            quality = calibration_accuracy(trial(graph, silent).graph, context.data, context.runtime)
            row = {"weight": name, "node": node.output, "setting": setting, "value": value}
            rows.append({**row, "calibration": quality, "change": quality - before})
    return rows
