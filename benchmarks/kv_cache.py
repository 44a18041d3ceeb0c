"""Decode with and without the KV cache: python benchmarks/kv_cache.py [--layers 4 --dim 128 --heads 4 --tokens 256].

Both generate the same greedy tokens from the same random weights, alternating in one process, BLAS on one thread. Prints the
time of the whole generation, its ratio with a bootstrap interval, and the time per token along the way.
"""

from __future__ import annotations

import argparse
import os
import time

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np

from mlperf_opt.data import load_data
from mlperf_opt.graph import Graph
from mlperf_opt.measure import describe_system, fix_threads, median_ratio_interval
from mlperf_opt.networks import MinimalTransformer
from mlperf_opt.passes import PASSES, PassContext
from mlperf_opt.runtimes import NUMPY, Executable, greedy

_PROMPT = 1


def _networks(arguments: argparse.Namespace) -> tuple[Graph, Graph]:
    network = MinimalTransformer(
        vocabulary=65,
        context=arguments.tokens + _PROMPT,
        layers=arguments.layers,
        dim=arguments.dim,
        heads=arguments.heads,
        hidden=4 * arguments.dim,
    )
    plain = network.build("transformer", np.random.default_rng(0))
    # kv_cache looks at no data; the context wants some
    context = PassContext(load_data("reverse"), 0, NUMPY)
    return plain, PASSES["kv_cache"]()(plain, context).graph


def _generate(executable: Executable, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (seconds of each token, the tokens)."""
    seconds, produced = np.empty(tokens), np.empty(tokens, np.int64)
    started = time.perf_counter()
    for place, token in enumerate(greedy(executable, np.zeros((1, _PROMPT), np.int64), tokens)):
        now = time.perf_counter()
        seconds[place], produced[place], started = now - started, token[0], now
    return seconds, produced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("layers", 4), ("dim", 128), ("heads", 4), ("tokens", 256), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    with fix_threads(1):
        plain, cached = (NUMPY.prepare(graph) for graph in _networks(arguments))
        runs: dict[str, list[np.ndarray]] = {"plain": [], "cached": []}
        for turn in range(arguments.rounds + 1):
            first, expected = _generate(plain, arguments.tokens)
            second, actual = _generate(cached, arguments.tokens)
            np.testing.assert_array_equal(actual, expected)
            if turn:  # the first round warms up
                runs["plain"].append(first)
                runs["cached"].append(second)
    system = describe_system()
    shape = f"{arguments.layers} layers, dim {arguments.dim}, {arguments.heads} heads, {arguments.tokens} tokens"
    print(f"{shape}, numpy runtime, 1 thread")
    print(f"{system['cpu']}; load {system['load_average'][0]:.2f}")
    for name, rounds in runs.items():
        per_token = np.median(rounds, axis=0) * 1e6
        marks = [at for at in (16, 64, 128, 256) if at <= arguments.tokens]
        places = ", ".join(f"{at}: {np.median(per_token[at - 8 : at]):.0f}" for at in marks)
        print(f"{name:>7}: {np.median([r.sum() for r in rounds]):.3f} s in all; us per token at token {places}")
    ratios = [a.sum() / b.sum() for a, b in zip(runs["plain"], runs["cached"], strict=True)]
    last = [np.median(a[-8:]) / np.median(b[-8:]) for a, b in zip(runs["plain"], runs["cached"], strict=True)]
    for what, values in (("whole generation", ratios), (f"one token at {arguments.tokens}", last)):
        middle, low, high = median_ratio_interval(values, 0)
        print(f"{what}: the cache is {middle:.1f}x faster (95 % interval {low:.1f} to {high:.1f})")
    print("the tokens are the same")


if __name__ == "__main__":
    main()
