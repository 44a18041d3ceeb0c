"""Sparse against dense: python benchmarks/sparse.py [--columns 1024 --inputs 1024 --batches 1,64 --seconds 0.5].

One linear layer with random weights, of which a share is 0, in float32 and in int8 (static codes, float32 out), each dense
and sparse, interleaved in one process on one thread. Prints medians, and ratios of the windows side by side with their 95 %
bootstrap intervals; then what the plan says, with the break-evens that it goes by on this machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np

from mlperf_opt.graph import Graph, GraphBuilder
from mlperf_opt.measure import describe_system, fix_threads, median_ratio_interval
from mlperf_opt.runtimes import COMPILED, NUMPY, Executable, RuntimeOptions

_WINDOW = 5e-4  # seconds: short, so that few windows are interrupted by whatever else runs here


def _float32(codes: np.ndarray) -> Graph:
    build = GraphBuilder("float32")
    x = build.input("x", ("N", codes.shape[1]), "float32")
    return build.finish(build.node("linear", "layer", x, weight=(codes / 64).astype(np.float32)))


def _int8(codes: np.ndarray) -> Graph:
    """The layer with the quantization of its input, which is part of what is timed."""
    build = GraphBuilder("int8")
    x = build.input("x", ("N", codes.shape[1]), "float32")
    scale, zero, w_scale = np.asarray(1 / 32, np.float32), np.asarray(128, np.uint8), np.asarray(1 / 64, np.float32)
    x = build.node("quantize", "codes", x, scale=scale, zero=zero)
    return build.finish(build.node("qlinear", "layer", x, x_scale=scale, x_zero=zero, weight=codes, w_scale=w_scale))


def _window(executable: Executable, x: np.ndarray, calls: int) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    for _ in range(calls):
        executable(x)
    return (time.perf_counter() - started) / calls


def _interleaved(subjects: list[Executable], x: np.ndarray, seconds: float) -> list[list[float]]:
    """Seconds of a call of each subject, window by window side by side."""
    calls = [max(1, round(_WINDOW / min(_window(s, x, 1) for _ in range(5)))) for s in subjects]
    times: list[list[float]] = [[] for _ in subjects]
    end = time.perf_counter() + seconds * len(subjects)
    while time.perf_counter() < end or len(times[0]) < 5:
        for place, subject in enumerate(subjects):
            times[place].append(_window(subject, x, calls[place]))
    return times


def _ratio(slow: list[float], fast: list[float]) -> str:
    middle, low, high = median_ratio_interval([a / b for a, b in zip(slow, fast, strict=True)], 0)
    return f"{middle:5.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--inputs", type=int, default=1024)
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--zeros", default="50,80,90,95,98", help="percent")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each of the four")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (arguments.columns, arguments.inputs)
    notes: dict[str, str] = {}
    system = describe_system()
    print(f"linear {shape[1]} -> {shape[0]}, 1 thread, medians in us, ratios with their 95 % intervals")
    print(f"{system['cpu']}; load {system['load_average'][0]:.2f}")
    heads = ("batch", "zeros", "dense fp32", "sparse fp32", "dense int8", "sparse int8")
    ratios = ("sparse/dense fp32", "sparse/dense int8", "sparse int8/dense fp32")
    print(" | ".join([*heads, *ratios]))
    with fix_threads(1):
        for batch in map(int, arguments.batches.split(",")):
            x = rng.uniform(-4, 3.9, (batch, shape[1])).astype(np.float32)
            for percent in map(float, arguments.zeros.split(",")):
                codes = rng.integers(1, 127, shape).astype(np.int8)
                codes.reshape(-1)[rng.permutation(codes.size)[: round(codes.size * percent / 100)]] = 0
                subjects: list[Executable] = []
                for kind, graph in (("float32", _float32(codes)), ("int8", _int8(codes))):
                    expected = NUMPY.prepare(graph)(x)
                    for option in ("never", "always"):
                        subjects.append(COMPILED.configured(RuntimeOptions(sparse=option)).prepare(graph))
                        tolerance = 0 if kind == "int8" else 1e-5 * np.abs(expected).max()
                        np.testing.assert_allclose(subjects[-1](x), expected, rtol=0, atol=tolerance)
                    notes[f"{kind}, {percent:g} %"] = COMPILED.prepare(graph).notes.get("layer", "dense: too few zeros")
                times = _interleaved(subjects, x, arguments.seconds)
                cells = [f"{batch:5}", f"{percent:4g}%"]
                cells += [f"{statistics.median(t) * 1e6:{len(head)}.1f}" for t, head in zip(times, heads[2:], strict=True)]
                dense, sparse, dense_codes, sparse_codes = times
                cells += [_ratio(dense, sparse), _ratio(dense_codes, sparse_codes), _ratio(dense, sparse_codes)]
                print(" | ".join(cells), flush=True)
    print("what the plan says")
    for what, note in sorted(notes.items()):
        print(f"  {what}: {note}")


if __name__ == "__main__":
    main()
