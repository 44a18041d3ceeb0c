"""What the KV cache changes in the shipped transformer: python benchmarks/kv_cache_exact.py [--words 256].

For each number format the same test words go through the graph without the cache as wholes, and through the graph with it a
token at a time. Prints the largest difference of a logit at any position, the share of positions with the same greedy
token, and the exact match of completions without and with the cache.
"""

from __future__ import annotations

import argparse
import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np

from mlperf_opt.artifacts import load_graph
from mlperf_opt.data import Dataset, load_data
from mlperf_opt.evaluate import answer_length, answers, prompts
from mlperf_opt.graph import Graph
from mlperf_opt.passes import PASSES, PassContext
from mlperf_opt.resources import resource_dir
from mlperf_opt.runtimes import NUMPY, complete, stepwise

_FORMATS = {
    "float32": None,
    "fp16": {"dtype": "fp16"},
    "int8 weight_only": {"scheme": "weight_only"},
    "int8 static": {"scheme": "static"},
    "int8 dynamic": {"scheme": "dynamic"},
}


def _exact_match(graph: Graph, data: Dataset) -> float:
    completed = complete(NUMPY.prepare(graph), prompts(data, "test"), answer_length(data))
    return float((completed == answers(data, "test")).all(axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=256)
    arguments = parser.parse_args()
    data = load_data("reverse")
    context = PassContext(data, 0, NUMPY)
    shipped = load_graph(resource_dir("models") / "transformer" / "weights.safetensors")
    words = data.test.inputs[: arguments.words]
    print(f"{len(words)} test words of {words.shape[1]} tokens, every position; exact match on {len(data.test):,}")
    print(f"{'':>16}  {'largest difference':>18}  {'same greedy token':>17}  {'exact match':>11}  {'with cache':>10}")
    for name, settings in _FORMATS.items():
        plain = shipped if settings is None else PASSES["quant"](**settings)(shipped, context).graph
        cached = PASSES["kv_cache"]()(plain, context).graph
        whole, stepped = NUMPY.prepare(plain)(words), stepwise(NUMPY.prepare(cached), words)
        worst = float(np.abs(whole - stepped).max())
        same = float((whole.argmax(axis=-1) == stepped.argmax(axis=-1)).mean())
        matches = "  ".join(f"{_exact_match(graph, data):>{width}.3f}" for graph, width in ((plain, 11), (cached, 10)))
        print(f"{name:>16}  {worst:>18.2g}  {same:>17.4f}  {matches}")


if __name__ == "__main__":
    main()
