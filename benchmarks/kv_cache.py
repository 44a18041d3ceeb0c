"""Decode with and without the KV cache: python benchmarks/kv_cache.py [--layers 4 --dim 128 --heads 4 --tokens 256
--batch 1].

Both generate the same greedy tokens from the same random weights, alternating in one process, BLAS on one thread. Prints the
time of the whole generation, its ratio with a bootstrap interval, and the time per step along the way.
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
from mlperf_opt.runtimes import NUMPY, Executable, continuations

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


def _generate(executable: Executable, batch: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (seconds of each step, the tokens (tokens, batch))."""
    times, produced = [time.perf_counter()], []
    for token in continuations(executable, np.zeros((batch, _PROMPT), np.int64), tokens):
        produced.append(token)
        times.append(time.perf_counter())
    return np.diff(times), np.stack(produced)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("layers", 4), ("dim", 128), ("heads", 4), ("tokens", 256), ("batch", 1), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    with fix_threads(1):
        plain, cached = (NUMPY.prepare(graph) for graph in _networks(a))
        runs: dict[str, list[np.ndarray]] = {"plain": [], "cached": []}
        for turn in range(a.rounds + 1):
            first, expected = _generate(plain, a.batch, a.tokens)
            second, actual = _generate(cached, a.batch, a.tokens)
            np.testing.assert_array_equal(actual, expected)
            if turn:  # the first round warms up
                runs["plain"].append(first)
                runs["cached"].append(second)
    system = describe_system()
    shape = f"{a.layers} layers, dim {a.dim}, {a.heads} heads, {a.tokens} tokens, batch {a.batch}"
    print(f"{shape}, numpy runtime, 1 thread")
    print(f"{system['cpu']}; load {system['load_average'][0]:.2f}")
    for name, rounds in runs.items():
        per_token = np.median(rounds, axis=0) * 1e6
        marks = [at for at in (16, 64, 128, 256) if at <= a.tokens]
        places = ", ".join(f"{at}: {np.median(per_token[at - 8 : at]):.0f}" for at in marks)
        print(f"{name:>7}: {np.median([r.sum() for r in rounds]):.3f} s in all; us per step at token {places}")
    ratios = [x.sum() / y.sum() for x, y in zip(runs["plain"], runs["cached"], strict=True)]
    last = [np.median(x[-8:]) / np.median(y[-8:]) for x, y in zip(runs["plain"], runs["cached"], strict=True)]
    for what, values in (("whole generation", ratios), (f"one token at {a.tokens}", last)):
        middle, low, high = median_ratio_interval(values, 0)
        print(f"{what}: the cache is {middle:.1f}x faster (95 % interval {low:.1f} to {high:.1f})")
    print("the tokens are the same")


if __name__ == "__main__":
    main()
