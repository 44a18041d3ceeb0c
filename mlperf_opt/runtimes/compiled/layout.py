"""Where the values of a program lie: their memory, steps and order, and which of them share room in the arena."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Graph, Node
from mlperf_opt.kernels.instruction import ARENA, INPUT, reference

LINE = 64  # bytes: what rows are aligned to, and what a vector load may read behind the last of them
_SAME_SHAPE = ("relu", "gelu", "add")


@dataclass(frozen=True)
class Value:
    """A value of the graph as kernels see it.

    Attributes:
        shape: of one row, without N and T; as numpy has it: images are (C, H, W).
        dtype: of its elements.
        memory: number of its memory.
        offset: of its first byte (the corner of the halo, where there is one).
        row_step: bytes from row to row.
        image: (C, H, W) where the elements lie channels-last, else None: they lie as in numpy.
        halo: pixels around a channels-last image.
    """

    shape: tuple[int, ...]
    dtype: str
    memory: int
    offset: int
    row_step: int
    image: tuple[int, int, int] | None = None
    halo: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    @property
    def count(self) -> int:
        """Elements of a row, its halo included."""
        if self.image is None:
            return math.prod(self.shape)
        channels, height, width = self.image
        return channels * (height + 2 * self.halo) * (width + 2 * self.halo)

    @property
    def pixel_step(self) -> int:
        """Bytes from pixel to pixel of a channels-last image."""
        assert self.image is not None
        return self.image[0] * self.itemsize

    @property
    def line_step(self) -> int:
        """Bytes from line to line of a channels-last image."""
        assert self.image is not None
        return (self.image[2] + 2 * self.halo) * self.pixel_step

    def start(self, halo: int = 0) -> int:
        """Return the reference to the first pixel, or to ``halo`` pixels before it in both directions."""
        if self.image is None:
            return reference(self.memory, self.offset)
        inside = self.halo - halo
        return reference(self.memory, self.offset + inside * (self.line_step + self.pixel_step))


def place(spec_shape: tuple[int, ...], dtype: str, image: tuple[int, int, int] | None, halo: int) -> Value:
    """Return a value that has no place in the arena yet."""
    value = Value(spec_shape, dtype, ARENA, -1, 0, image, halo)
    return replace(value, row_step=_aligned(value.count * value.itemsize))


def _aligned(size: int) -> int:
    return (size + LINE - 1) // LINE * LINE


def row_shape(graph: Graph, name: str) -> tuple[int, ...]:
    """Return the shape of one row of a value: its dimensions without N and T.

    Raises:
        GraphError: dimensions are named in another way than (N, ...) or (N, T, ...).
    """
    shape = graph.specs[name].shape
    named = [d for d in shape if isinstance(d, str)]
    if shape[: len(named)] not in ((), ("N",), ("N", "T")) or tuple(shape[: len(named)]) != tuple(named):
        raise GraphError(f"the compiled runtime can't lay out {name!r}: {graph.specs[name]}")
    return tuple(int(d) for d in shape[len(named) :])


def halos(graph: Graph) -> dict[str, int]:
    """Return how many pixels of padding the readers of each image want around it.

    Ops that keep the shape read and write the halo too (relu, gelu and sums of 0 are 0), so that both sides have the same.
    """
    found = {node.output: 0 for node in graph.nodes} | dict.fromkeys(graph.inputs, 0)
    for node in graph.nodes:
        if node.op in ("conv2d", "qconv2d"):
            found[node.argument("x")] = max(found[node.argument("x")], int(node.attributes["padding"]))
    changed = True
    while changed:
        changed = False
        for node in graph.nodes:
            if node.op not in _SAME_SHAPE or len(graph.specs[node.output].shape) != 4:
                continue
            names = [*node.inputs, node.output]
            most = max(found[name] for name in names)
            changed |= any(found[name] != most for name in names)
            found |= dict.fromkeys(names, most)
    return found


class Arena:
    """Hands out the memory of activations: a range is free again after the last reader of its value.

    Images with a halo keep their range: what lies around them is written once, before the first call.
    """

    def __init__(self, rows: int) -> None:
        self.size = LINE
        self.fills: list[tuple[int, int, int]] = []  # (offset, bytes, value of the byte)
        self._rows = rows
        self._free: list[tuple[int, int]] = []
        self._used: dict[str, tuple[int, int]] = {}

    def give(self, name: str, value: Value, fill: int = 0) -> Value:
        """Return ``value`` with its place."""
        size = _aligned(value.row_step * self._rows + LINE)
        if value.halo:
            placed = replace(value, offset=self._new(size))
            self.fills.append((placed.offset, size, fill))
            return placed
        fitting = [free for free in self._free if free[1] >= size]
        if fitting:
            best = min(fitting, key=lambda free: free[1])
            self._free.remove(best)
            if best[1] > size:
                self._free.append((best[0] + size, best[1] - size))
            offset = best[0]
        else:
            offset = self._new(size)
        self._used[name] = (offset, size)
        return replace(value, offset=offset)

    def scratch(self, size: int) -> int:
        """Return the offset of room that nothing else uses."""
        return self._new(_aligned(size + LINE))

    def release(self, name: str) -> None:
        """The value is not read any more."""
        if name in self._used:
            offset, size = self._used.pop(name)
            for other in list(self._free):  # join with free neighbours
                if other[0] + other[1] == offset:
                    self._free.remove(other)
                    offset, size = other[0], other[1] + size
                elif offset + size == other[0]:
                    self._free.remove(other)
                    size += other[1]
            self._free.append((offset, size))

    def _new(self, size: int) -> int:
        offset, self.size = self.size, self.size + size
        return offset


def last_readers(graph: Graph) -> Mapping[str, str]:
    """Return value -> output of the last node that reads it (of the node that makes it, where nobody does)."""
    last: dict[str, str] = {}
    made = {*graph.inputs, *(node.output for node in graph.nodes)}
    for node in graph.nodes:
        last[node.output] = node.output
        for name in node.inputs:
            if name in made:
                last[name] = node.output
    last |= dict.fromkeys(graph.outputs, graph.nodes[-1].output)  # the caller reads them at the end
    order = {node.output: i for i, node in enumerate(graph.nodes)}
    for node in reversed(graph.nodes):
        if node.op == "flatten":  # another view of the same memory
            last[node.inputs[0]] = max(last[node.inputs[0]], last[node.output], key=lambda name: order[name])
    return last


def input_value(graph: Graph) -> tuple[str, Value]:
    """Return the name and the place of the graph's first input: rows as numpy has them."""
    name = next(iter(graph.inputs))
    shape, dtype = row_shape(graph, name), graph.specs[name].dtype
    return name, Value(shape, dtype, INPUT, 0, math.prod(shape) * np.dtype(dtype).itemsize)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether a row is an image (C, H, W)."""
    return len(shape) == 3


def unsupported(node: Node, why: str) -> GraphError:
    """The error for what this runtime lacks."""
    return GraphError(f"the compiled runtime can't run node {node.output!r} ({node.op}): {why}; use runtime=numpy")
