"""From how many zeros on sparse is faster than dense: measured on this machine, once for a kind of layer, and kept on disk.

Random weights of two densities run sparse beside a dense product of the same shape. A sparse product takes a time that does
not depend on its entries (sums to finish, an input to transpose), and one for each entry; both are kept in units of the
dense product's time, so that a layer's gain follows from the number of its entries.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.graph import Affine, Graph, GraphBuilder, Weight
from mlperf_opt.kernels import machine
from mlperf_opt.kernels.cache import cache_folder
from mlperf_opt.kernels.jit import features
from mlperf_opt.measure import cpu_name
from mlperf_opt.runtimes.base import Isa

Array = NDArray[Any]
MANY_ROWS = 64
_LEAST_SIDE, _MOST_SIDE = 16, 1024  # of what is measured: larger ones behave like these, and would take too long
_DENSITIES = (0.3, 0.06)
_ROUNDS = 7
_WINDOW = 1e-4  # seconds
_GROUP = 4  # int8 codes of a word
_LEAST_COST, _ABSURD = 1e-3, 1e6
_ALMOST_ALL = 0.995


@dataclass(frozen=True)
class Layer:
    """A kind of layer: its shape, and that of its weights: float32, float16, int8; codes-ISA where inputs are codes too."""

    kind: str
    columns: int
    inputs: int

    @property
    def is_integer(self) -> bool:
        """Whether its inputs are codes."""
        return self.kind.startswith("codes")

    @property
    def isa(self) -> Isa:
        """The instructions that it is made for."""
        return cast("Isa", self.kind.partition("-")[2] or "auto")

    @property
    def like(self) -> Layer:
        """The layer that is measured for it: its sides are powers of two."""
        sides = (2 ** round(math.log2(side)) for side in (self.columns, self.inputs))
        columns, inputs = (min(max(side, _LEAST_SIDE), _MOST_SIDE) for side in sides)
        return Layer(self.kind, columns, inputs)


@dataclass(frozen=True)
class BreakEven:
    """What sparse costs, dense being 1.

    Attributes:
        fixed: whatever the number of entries.
        full: on top of that, if no word of the weight were zero.
        group: inputs of a word, which is zero if all of them are.
    """

    fixed: float
    full: float
    group: int

    def gain(self, entries: float) -> float:
        """How many times faster than dense a layer is; ``entries``: stored words, as a share of those of a dense product."""
        return 1 / max(self.fixed + self.full * entries, _LEAST_COST)  # a weight of zeros alone has no entries

    def zeros(self, now: float, entries: float) -> str:
        """The share of zeros at which both are equally fast, of a layer like one that has a share ``now`` and ``entries``.

        Where zeros stand side by side, or columns are equally long, fewer words are stored than of zeros at random.
        """
        even, here = (
            (1 - min(max(words, 0.0), 1.0)) ** (1 / self.group) for words in ((1 - self.fixed) / self.full, entries)
        )
        share = even if here == 1 else 1 - (1 - now) * (1 - even) / (1 - here)
        return percent(min(max(share, 0.0), _ALMOST_ALL))


def percent(share: float) -> str:
    """A share as percent; what isn't quite 100 % must not look like it."""
    return "over 99 %" if _ALMOST_ALL <= share < 1 else f"{100 * share:.0f} %"


def break_even(layer: Layer) -> tuple[BreakEven, BreakEven]:
    """Return the break-even of a kind of layer for one row and for many, from the file of this machine or measured now."""
    one, full_one, many, full_many = _costs(layer.like, _file())
    group = _GROUP if layer.is_integer else 1
    return BreakEven(one, full_one, group), BreakEven(many, full_many, group)


@functools.cache
def _costs(layer: Layer, path: Path | None) -> tuple[float, ...]:
    if path is None:  # no home: measured in every process
        return measure(layer)
    key = f"{layer.kind} {layer.columns}x{layer.inputs}"
    known = _read(path).get(key)
    if known is None:
        known = measure(layer)
        # read again: another process may have written in the meantime
        _write(path, _read(path) | {key: known})
    return known


# the file


def _file() -> Path | None:
    folder = cache_folder()
    machine_ = f"{cpu_name()} {' '.join(sorted(features()))}"
    return folder and folder / f"break-even-{hashlib.sha256(machine_.encode()).hexdigest()[:12]}.json"


def _read(path: Path) -> dict[str, tuple[float, ...]]:
    """Return what the file says, nothing of what is not as it should be: that is measured anew."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: tuple(map(float, costs)) for key, costs in content.items() if _is_sound(costs)}


def _is_sound(costs: Any) -> bool:
    if not isinstance(costs, list) or len(costs) != 4:
        return False
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and 0 <= n < _ABSURD for n in costs):
        return False
    return costs[1] > 0 and costs[3] > 0


def _write(path: Path, content: dict[str, tuple[float, ...]]) -> None:
    """Write whole or not at all; where that is impossible, what was measured is kept in memory."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


# measuring


def measure(layer: Layer) -> tuple[float, ...]:
    """Return (fixed, full) for one row, then for many: the line through two densities, in units of the dense time."""
    rng = np.random.default_rng(0)
    subjects = [_Subject(layer, density, rng) for density in (1.0, *_DENSITIES)]
    found: list[float] = []
    for rows in (1, MANY_ROWS):
        entries = [subject.entries[rows] for subject in subjects]
        # what disturbs makes it slower, so the shortest of some interleaved times is the least disturbed
        calls = [subject.calls(rows) for subject in subjects]
        rounds = [[s.time(rows, n) for s, n in zip(subjects, calls, strict=True)] for _ in range(_ROUNDS)]
        dense, thick, thin = np.min(rounds, axis=0).tolist()
        full = max((thick - thin) / dense / (entries[1] - entries[2]), _LEAST_COST)
        found += [max(thin / dense - full * entries[2], 0.0), full]
    return tuple(found)


class _Subject:
    """A product with random weights, dense where the density is 1, that can be timed."""

    def __init__(self, layer: Layer, density: float, rng: np.random.Generator) -> None:
        # here, because the lowerings plan with what is found out here
        from mlperf_opt.runtimes.compiled.lowerings import LOWERINGS
        from mlperf_opt.runtimes.compiled.program import Program
        from mlperf_opt.runtimes.compiled.sparse_packing import count_few, count_many, words_of
        from mlperf_opt.runtimes.compiled.worker import Worker, aligned_bytes

        codes = rng.integers(1, 128, (layer.columns, layer.inputs), np.int8)
        codes[rng.random(codes.shape, np.float32) >= density] = 0
        program = Program(_graph(layer, codes), MANY_ROWS, LOWERINGS, layer.isa, "never" if density == 1 else "always")
        constants = aligned_bytes(program.constants.nbytes)
        constants[:] = program.constants
        self._worker = Worker(program, constants)
        self._x = np.zeros(MANY_ROWS * layer.inputs, np.float32)
        self._out = np.zeros(MANY_ROWS * layer.columns, np.float32)
        words = words_of(codes) if layer.is_integer else codes
        self.entries = {1: count_few(words) / words.size, MANY_ROWS: count_many(words) / words.size}

    def calls(self, rows: int) -> int:
        """How many calls fill a window."""
        return max(1, math.ceil(_WINDOW / max(min(self.time(rows, 1) for _ in range(3)), 1e-9)))

    def time(self, rows: int, calls: int) -> float:
        """Seconds of one call, of so many in a row."""
        job = self._worker.part(slice(None), calls)
        started = time.perf_counter()
        machine.run_arrays(job, self._x, self._out, 0, rows, 1)
        return (time.perf_counter() - started) / calls


def _graph(layer: Layer, codes: Array) -> Graph:
    """One linear layer of that kind."""
    build = GraphBuilder("break-even")
    if layer.is_integer:
        x = build.input("x", ("N", layer.inputs), "uint8")
        one, zero = np.ones((), np.float32), np.zeros((), np.uint8)
        return build.finish(build.node("qlinear", "y", x, x_scale=one, x_zero=zero, weight=codes, w_scale=one))
    x = build.input("x", ("N", layer.inputs), "float32")
    real = codes.astype(np.float16 if layer.kind == "float16" else np.float32)
    graph = build.finish(build.node("linear", "y", x, weight=real))
    if layer.kind == "int8":
        scales = np.ones(len(codes), np.float32)
        graph = replace(graph, weights={"y.weight": Weight(codes, Affine(scales, axis=0, bits=8))})
    return graph
