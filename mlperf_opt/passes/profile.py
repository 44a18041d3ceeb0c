"""profile: where the time, the work and the bytes go."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from numpy.typing import NDArray

from mlperf_opt.graph import Graph, Node, split_name
from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.passes.sensitivity import sensitivity
from mlperf_opt.settings import require


@dataclass(frozen=True)
class Profile(Pass):
    """Count parameters, multiply-accumulates, bytes and activations of each node, and time it. The graph stays as it is.

    Times are medians of node-by-node runs on the runtime: they include its call overhead; their sum exceeds a whole call.

    Attributes:
        batch: samples a run, from the calibration split.
        repeats: timed runs, after a tenth as many untimed ones.
        sensitivity: also how the accuracy on the calibration split falls when one matrix alone is pruned, or shares values:
            the table `sensitivity`, from which to choose `layers` of cluster and `skip` of prune.
    """

    batch: int = 1
    repeats: int = 50
    sensitivity: bool = False

    effect: ClassVar = "keeps_weights"
    tolerance: ClassVar = 0.0

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "a whole number >= 1")
        require(self.repeats >= 1, "repeats", self.repeats, "a whole number >= 1")

    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        inputs = context.data.calibration.inputs[: self.batch]
        executable = context.runtime.prepare(graph)
        times: dict[str, list[int]] = defaultdict(list)

        def note(node: Node, value: NDArray[Any], nanoseconds: int) -> None:
            times[node.output].append(nanoseconds)
            sizes[node.output] = value.nbytes

        sizes: dict[str, int] = {}
        for _ in range(-(-self.repeats // 10)):
            executable(inputs)
        for _ in range(self.repeats):
            executable.observe(note, inputs)
        medians = {name: median(values) / 1000 for name, values in times.items()}
        total = sum(medians.values())
        length = inputs.shape[1] if inputs.ndim == 2 else 1
        dims = {"N": len(inputs), "T": length, "L": length}
        parameters = graph.parameters()
        rows = []
        for node, cost in graph.costs(dims):
            weights = [graph.weights[name] for name in {split_name(n)[0] for n in node.inputs} & set(parameters)]
            rows.append(
                {
                    "node": node.output,
                    "op": node.op,
                    "output": str(graph.specs[node.output]),
                    "parameters": sum(w.values.size for w in weights),
                    "weight_bytes": sum(w.values.nbytes for w in weights),
                    "activation_bytes": sizes[node.output],
                    "macs": cost.macs,
                    "moved_bytes": cost.bytes,
                    "time_us": medians[node.output],
                    "time_share": medians[node.output] / total,
                    "note": executable.notes.get(node.output, ""),
                }
            )
        tables = {"nodes": rows} | ({"sensitivity": sensitivity(graph, context)} if self.sensitivity else {})
        return PassResult(graph, {"time_us": total, "macs": sum(r["macs"] for r in rows)}, tables)
