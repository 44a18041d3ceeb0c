"""The benchmarks are scripts beside the package: finds their modules by folder, and imports them.

A script fixes its threads, in the environment, when it is imported; that is undone here.
"""

import os
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

_environment = dict(os.environ)
import context  # noqa: E402
import decode  # noqa: E402
import roofline  # noqa: E402
import side_by_side  # noqa: E402
import streaming  # noqa: E402

os.environ.clear()
os.environ.update(_environment)

__all__ = ["BENCHMARKS", "context", "decode", "roofline", "side_by_side", "streaming"]
