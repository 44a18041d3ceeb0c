"""What the context coder saves, and what it takes: python benchmarks/coding.py FILE.safetensors ...

Each model file is read, written again, and written without the context coder, so that every array has the shortest of the
static encodings. Prints the bytes of both files, and the median seconds of writing (the check of what was written included)
and of reading.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest.mock import patch

from mlperf_opt.artifacts import load_graph, save_graph
from mlperf_opt.artifacts.context import ContextEncoder
from mlperf_opt.measure import fix_threads

_ROUNDS = 5


def _seconds(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return median(taken[1:])  # the first one compiles, or reads what was compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    print("| weights | bytes | without the context coder | shorter by | written in | read in |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    with fix_threads(1), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        for file in arguments.files:
            graph = load_graph(file)
            with patch.object(ContextEncoder, "offer", return_value=None):
                static = save_graph(graph, path).file_bytes
            writing = _seconds(lambda graph=graph: save_graph(graph, path))
            coded = path.stat().st_size
            reading = _seconds(lambda: load_graph(path))
            count = sum(weight.values.size for weight in graph.parameters().values())
            saved = f"{1 - coded / static:.0%}"
            print(f"| {count:,} | {coded:,} | {static:,} | {saved} | {writing:.2f} s | {reading:.2f} s |")


if __name__ == "__main__":
    main()
