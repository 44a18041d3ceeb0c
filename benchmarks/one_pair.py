"""The process of one pair: one model, two subjects, one number of threads. `side_by_side.py` starts it.

Reads one JSON object from its only argument and writes one to stdout. A process of its own: the threads of one library would
otherwise wait, spinning, on the cores that another is measured on, and BLAS reads its number of threads once.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from cases import model
from peers import SUBJECTS
from windows import CLOCKS, compare

_PAUSE = 5e-3  # with several threads; see windows.compare


def run(wanted: dict[str, Any]) -> dict[str, Any]:
    """Compare predictions, then times at each batch.

    Args:
        wanted: model, first, second, threads, batches, seconds, clock.

    Returns:
        those, equal (the share of equal predictions), difference (the largest of an output, in standard deviations of the
        outputs) and times: batch -> `windows.Comparison` as a dict.
    """
    subject = model(wanted["model"])
    first, second = (SUBJECTS[wanted[name]](subject, wanted["threads"]) for name in ("first", "second"))
    one, two = (np.asarray(bind(subject.inputs)()) for bind in (first, second))
    times = {}
    for batch in wanted["batches"]:
        x = subject.batch(batch)
        pause = _PAUSE if wanted["threads"] > 1 else 0.0
        found = compare(first(x), second(x), wanted["seconds"], pause=pause, clock=CLOCKS[wanted["clock"]])
        times[str(batch)] = asdict(found)
    return {
        **wanted,
        "equal": float((one.argmax(axis=-1) == two.argmax(axis=-1)).mean()),
        "difference": float(np.abs(one - two).max() / one.std()),
        "times": times,
    }


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
