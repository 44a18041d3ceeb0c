"""Which linear layers run sparse: for one row and for many, from a break-even measured on this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.graph import Node
from mlperf_opt.kernels import opcodes
from mlperf_opt.kernels import sparse as kernels
from mlperf_opt.kernels.emit import LANES
from mlperf_opt.kernels.jit import features
from mlperf_opt.kernels.tiles import FLOAT, INT8, INT8_PORTABLE
from mlperf_opt.runtimes.compiled.break_even import MANY_ROWS, Layer, break_even, percent
from mlperf_opt.runtimes.compiled.packing import panels_of
from mlperf_opt.runtimes.compiled.program import Program
from mlperf_opt.runtimes.compiled.sparse_packing import (
    MOST_WORDS,
    Packed,
    count_few,
    count_many,
    pack_few,
    pack_many,
    words_of,
)

Array = NDArray[Any]
_LEAST_ZEROS = 0.5
_LEAST_WEIGHTS = 4096  # a smaller layer takes less than a microsecond: there is nothing to gain
_FEW_ROWS = 15  # from there on rows are transposed, or dense
_NEVER = 1 << 40  # rows
_FORCED_MANY = 4  # rows, where a setting says always sparse


@dataclass(frozen=True)
class SparsePlan:
    """How one product runs.

    Attributes:
        arithmetic: of the kernels.
        words: width of a weight in words.
        few: the packing for up to ``few_most`` rows, None where they run dense.
        many: the packing for at least ``many_from`` rows, None where they run dense.
        uses_dense: whether any number of rows runs dense.
    """

    arithmetic: int = FLOAT
    words: int = 0
    few: Packed | None = None
    few_most: int = 0
    many: Packed | None = None
    many_from: int = _NEVER
    uses_dense: bool = True

    def dense(self, weight: Array) -> Array:
        """The weight that the dense kernels need: none where nothing runs dense."""
        return weight if self.uses_dense else weight[:0]

    def attach(self, program: Program) -> None:
        """Let the product that was emitted last run sparse where it should."""
        if self.few is None and self.many is None:
            return
        fields = program.latest()
        columns = fields[kernels.COLUMNS]
        plan = np.zeros(kernels.PLAN_WIDTH, np.int64)
        plan[kernels.FEW_MOST], plan[kernels.MANY_FROM], plan[kernels.DENSE] = self.few_most, self.many_from, fields[0]
        plan[kernels.ARITHMETIC], plan[kernels.WORDS] = kernels.KINDS.index(self.arithmetic), self.words
        scratch = kernels.scratch_bytes(self.words, panels_of(columns), program.rows if self.many else 1)
        plan[kernels.SCRATCH] = program.scratch(scratch)
        for packed, first in ((self.few, kernels.FEW_VALUES), (self.many, kernels.MANY_VALUES)):
            if packed is not None:
                for field, array in enumerate((packed.values, packed.places, packed.starts)):
                    plan[first + field] = program.constant(array)
        if self.few is not None:
            plan[kernels.FEW_ORDER] = program.constant(self.few.order)
        program.amend(opcodes.SPARSE_PRODUCT, program.constant(plan), may_leave=self.uses_dense)


def plan_floats(program: Program, node: Node, weight: Array, scale: Array | None) -> SparsePlan:
    """Plan a product in float32; weights (M, segments, K) as stored, int8 codes with the scale of each column."""
    if not _is_candidate(program, node, weight):
        return SparsePlan()
    real = weight[:, 0].astype(np.float32)
    if scale is not None:
        real *= np.broadcast_to(scale, (len(real),))[:, None]
    return _plan(program, node, weight, words_of(real), FLOAT, str(weight.dtype))


def plan_codes(program: Program, node: Node, weight: Array) -> SparsePlan:
    """Plan a product of int8 codes (M, segments, K) with uint8 codes."""
    if not _is_candidate(program, node, weight):
        return SparsePlan()
    vnni = "avx512vnni" in features() and program.isa != "portable"
    arithmetic = INT8 if vnni else INT8_PORTABLE
    return _plan(program, node, weight, words_of(weight[:, 0]), arithmetic, f"codes-{program.isa}")


def _is_candidate(program: Program, node: Node, weight: Array) -> bool:
    """Whether to think about it at all: small and dense layers must not cost a measurement."""
    if program.sparse == "never":
        return False
    if program.sparse == "auto" and (weight.size < _LEAST_WEIGHTS or _zeros(weight) < _LEAST_ZEROS):
        return False
    why = ""
    if node.op in ("conv2d", "qconv2d"):
        why = "convolutions run dense"
    elif words_of(weight[:1, 0]).shape[1] > MOST_WORDS:
        why = "so many inputs run dense"
    if why:
        program.notes[node.output] = f"{percent(_zeros(weight))} zeros: {why}"
    return not why


def _zeros(weight: Array) -> float:
    return 1 - np.count_nonzero(weight) / weight.size


def _plan(program: Program, node: Node, weight: Array, words: Array, arithmetic: int, kind: str) -> SparsePlan:
    if program.sparse == "always":
        few_most, many_from, note = _FORCED_MANY - 1, _FORCED_MANY, "sparse, as set"
    else:
        few_most, many_from, note = _measured(Layer(kind, len(words), weight.shape[2]), words, _zeros(weight))
    program.notes[node.output] = f"{percent(_zeros(weight))} zeros: {note}"
    return SparsePlan(
        arithmetic=arithmetic,
        words=words.shape[1],
        few=pack_few(words) if few_most else None,
        few_most=few_most,
        many=pack_many(words) if many_from <= program.rows else None,
        many_from=many_from,
        uses_dense=few_most < min(many_from - 1, program.rows),
    )


def _measured(layer: Layer, words: Array, zeros: float) -> tuple[int, int, str]:
    """Return (most rows of the first layout, fewest rows of the second, why).

    Dense takes at least as long for more rows, and at most that many times longer. So a layer that is twice as fast for one
    row is no slower for two; and one that is twice as fast for 64 rows is no slower for 32.
    """
    all_words = panels_of(len(words)) * LANES * words.shape[1]  # dense columns are filled up
    entries, many_entries = count_few(words) / all_words, count_many(words) / all_words
    one, many = break_even(layer)
    few_most = min(int(one.gain(entries)), _FEW_ROWS)
    gain = many.gain(many_entries)
    many_from = max(few_most + 1, math.ceil(MANY_ROWS / gain)) if gain >= 1 else _NEVER
    first, second = ("sparse" if yes else "dense" for yes in (few_most, many_from < _NEVER))
    ends = one.zeros(zeros, entries), many.zeros(zeros, many_entries)
    if first == second:
        return few_most, many_from, f"{first} is faster here, break-even {ends[0]} for one row, {ends[1]} for many"
    why = f"for one row {first} is faster here (break-even {ends[0]}), for many {second} ({ends[1]})"
    return few_most, many_from, why
