"""Lowering: a graph becomes instructions over an arena of activations and a pool of constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError
from mlperf_opt.graph import Affine, Codebook, Graph, Node, split_name
from mlperf_opt.kernels import opcodes
from mlperf_opt.kernels.instruction import ARENA, CONSTANTS, FIRST_STATE, INPUT, OUTPUT, WIDTH, reference
from mlperf_opt.kernels.machine import kernel_table
from mlperf_opt.runtimes.base import Isa, Sparse
from mlperf_opt.runtimes.compiled.layout import (
    LINE,
    Arena,
    Value,
    halos,
    input_value,
    is_image,
    last_readers,
    place,
    row_shape,
    unsupported,
)

Array = NDArray[Any]
_TYPES = ("float32", "uint8", "int32", "int64")  # of activations, codes, zero points of rows, tokens and positions
_ON_STATE = (opcodes.CACHE_WRITE, opcodes.CACHED_ATTENTION)
Lower = Callable[["Program", Node], None]


class Program:
    """Instructions for one graph, for chunks of up to ``rows`` rows.

    Attributes:
        graph: what is computed.
        instructions: int64 (instructions, WIDTH).
        spans: node name -> its instructions, as a slice.
        values: value name -> its place (of its latest copy, where it was reordered).
        made: node name -> where the node left its value.
        on_state: numbers of the instructions that want to know how many places the state has.
        kernels: the machine's table, in which those that the instructions need are ready.
        notes: node name -> what the plan decided about it, in words.
    """

    def __init__(self, graph: Graph, rows: int, lowerings: dict[str, Lower], isa: Isa, sparse: Sparse = "auto") -> None:
        self.graph = graph
        self.rows = rows
        self.isa = isa
        self.sparse = sparse
        self.arena = Arena(rows)
        self.values: dict[str, Value] = dict([input_value(graph)])
        self.made: dict[str, Value] = {}
        self.spans: dict[str, slice] = {}
        self.notes: dict[str, str] = {}
        self._left_to: set[int] = set()
        self._emitted: list[list[int]] = []
        self._constants: list[Array] = []
        self._constant_bytes = 0
        self._shared: dict[str, int] = {}
        self._halos = halos(graph)
        self._states = {state.name: FIRST_STATE + i for i, state in enumerate(graph.state)}
        last = last_readers(graph)
        for node in graph.nodes:
            first = len(self._emitted)
            if node.op not in lowerings:
                raise GraphError(f"the compiled runtime lacks the op {node.op}; use runtime=numpy")
            self._check_types(node)
            lowerings[node.op](self, node)
            self.spans[node.output] = slice(first, len(self._emitted))
            if node.output in self.values:
                self.made[node.output] = self.values[node.output]
            for name, reader in last.items():
                if reader == node.output and name not in graph.outputs:
                    self._release(name)
        first = len(self._emitted)
        self.output = self._write_output(graph.outputs[0])
        self.spans[""] = slice(first, len(self._emitted))  # what brings the result out
        self.instructions = np.zeros((len(self._emitted), WIDTH), np.int64)
        for row, fields in zip(self.instructions, self._emitted, strict=True):
            row[: len(fields)] = fields
        self.on_state = np.flatnonzero(np.isin(self.instructions[:, 0], _ON_STATE))
        self.kernels = kernel_table(self._left_to.union(self.instructions[:, 0].tolist()))

    def _check_types(self, node: Node) -> None:
        """Refuse values of types that no kernel reads or writes: they would be taken for what they are not."""
        caches = {name for state in self.graph.state for name in (state.name, state.update)}
        for name in (*node.inputs, node.output):
            is_value = name and name not in caches and not self.is_weight(name)
            if is_value and self.graph.specs[name].dtype not in _TYPES:
                raise unsupported(node, f"{name!r} is {self.graph.specs[name].dtype}")

    # what lowerings use

    def emit(self, opcode: int, *fields: int) -> None:
        """Append an instruction."""
        self._emitted.append([opcode, *(int(f) for f in fields)])

    def latest(self) -> list[int]:
        """The latest instruction: its opcode and fields."""
        return self._emitted[-1]

    def amend(self, opcode: int, last: int, *, may_leave: bool) -> None:
        """Give the latest instruction to another kernel, which may leave it to the one before; set its last field."""
        fields = self._emitted[-1]
        if may_leave:
            self._left_to.add(fields[0])
        self._emitted[-1] = [opcode, *fields[1:], *[0] * (WIDTH - 1 - len(fields)), last]

    def constant(self, array: Array) -> int:
        """Put an array into the pool and return its reference."""
        start = self._constant_bytes
        size = -(-(array.nbytes + LINE) // LINE) * LINE
        self._constants.append(np.zeros(size, np.uint8))
        self._constants[-1][: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._constant_bytes += size
        return reference(CONSTANTS, start)

    def shared_constant(self, name: str, array: Array) -> int:
        """Put an array that several nodes read into the pool, once, and return its reference."""
        if name not in self._shared:
            self._shared[name] = self.constant(array)
        return self._shared[name]

    def shared_scratch(self, name: str, size: int) -> int:
        """Return a reference to room, zeros at first, where instructions leave something for each other."""
        if name not in self._shared:
            self._shared[name] = self.scratch(size)
        return self._shared[name]

    def weight(self, argument: str) -> Array:
        """The array that an argument stands for."""
        name, part = split_name(argument)
        return self.graph.weights[name].part(part)

    def stored(self, argument: str) -> tuple[Array, Array | None]:
        """The values of a weight as stored (real ones of a codebook), and the scale of each column of int8 codes."""
        weight = self.graph.weights[split_name(argument)[0]]
        if isinstance(weight.encoding, Codebook):
            return weight.dense(), None
        return weight.values, weight.encoding.scale if isinstance(weight.encoding, Affine) else None

    def is_weight(self, argument: str) -> bool:
        """Whether an argument is a weight, not a value."""
        return split_name(argument)[0] in self.graph.weights

    def value(self, name: str) -> Value:
        """The place of a value that has been made."""
        return self.values[name]

    def inside(self, name: str) -> Value:
        """The value for a kernel that reads whole vectors: an input is copied, for behind it lies memory of others."""
        value = self.value(name)
        if value.memory == INPUT:
            size = value.count * value.itemsize
            copied = self.arena.give(f"{name} inside", place(value.shape, value.dtype, value.image, value.halo))
            self.emit(opcodes.COPY, value.start(), copied.start(), value.row_step, copied.row_step, size)
            self.values[name] = copied
        return self.values[name]

    def new(self, node: Node, *, image: bool = False, exact: bool = False) -> Value:
        """Make room for the node's value.

        Args:
            node: who makes it.
            image: channels-last, where it is an image.
            exact: the kernel writes no byte beyond a row, so that the graph's output can go straight to the caller.
        """
        shape, dtype = row_shape(self.graph, node.output), self.graph.specs[node.output].dtype
        if exact and not image and node.output == self.graph.outputs[0] and not self.graph.consumers(node.output):
            self.values[node.output] = Value(shape, dtype, OUTPUT, 0, math.prod(shape) * np.dtype(dtype).itemsize)
            return self.values[node.output]
        c_h_w = (shape[0], shape[1], shape[2]) if image and is_image(shape) else None
        halo = self._halos[node.output] if c_h_w else 0
        return self.keep(node.output, place(shape, dtype, c_h_w, halo))

    def keep(self, name: str, value: Value) -> Value:
        """Give a value its place in the arena, under its name."""
        self.values[name] = self.arena.give(name, value, self._halo_byte(name, value))
        return self.values[name]

    def _halo_byte(self, name: str, value: Value) -> int:
        """What lies around an image: 0, or the code that stands for it."""
        if value.dtype == "uint8" and value.halo:
            for node in self.graph.consumers(name):
                if node.op == "qconv2d" and self.is_weight(node.argument("x_zero")):
                    return int(self.weight(node.argument("x_zero")))
        return 0

    def alias(self, name: str, value: Value) -> None:
        """The value ``name`` is another one, seen in another way."""
        self.values[name] = value

    def scratch(self, size: int) -> int:
        """Return a reference to room for the duration of an instruction."""
        return reference(ARENA, self.arena.scratch(size))

    def state(self, name: str) -> int:
        """Return the reference to a state."""
        return reference(self._states[name])

    def halo(self, name: str) -> int:
        """Pixels of padding that the readers of an image want around it."""
        return self._halos[name]

    def channels_last(self, name: str) -> Value:
        """The image ``name``, channels-last and with its halo; converted where it is not."""
        value = self.value(name)
        if value.image is not None:
            return value
        c, h, w = value.shape
        halo = self._halos[name]
        if c == 1 and halo == 0:  # the same bytes
            return Value(value.shape, value.dtype, value.memory, value.offset, value.row_step, (c, h, w))
        converted = place(value.shape, value.dtype, (c, h, w), halo)
        converted = self.arena.give(f"{name} channels-last", converted)
        self.emit(
            opcodes.PACK_IMAGE, value.start(), converted.start(), value.row_step, converted.row_step, c, h, w, 0,
            converted.line_step,
        )  # fmt: skip
        self.values[name] = converted
        return converted

    def planar(self, name: str) -> Value:
        """The value ``name`` as numpy has it; converted where it is channels-last."""
        value = self.value(name)
        if value.image is None:
            return value
        c, h, w = value.image
        if value.halo == 0 and (c == 1 or h * w == 1):
            return Value(value.shape, value.dtype, value.memory, value.offset, value.row_step)
        if value.dtype != "float32":
            raise GraphError(f"the compiled runtime can't reorder {name!r}, which is {value.dtype}; use runtime=numpy")
        flat = place(value.shape, value.dtype, None, 0)
        flat = self.arena.give(f"{name} planar", flat)
        self.emit(
            opcodes.UNPACK_IMAGE, value.start(), flat.start(), value.row_step, flat.row_step, c, h, w, value.line_step, 0
        )
        return flat

    # memory

    @property
    def constants(self) -> Array:
        """The pool, uint8."""
        return np.concatenate(self._constants) if self._constants else np.zeros(LINE, np.uint8)

    def _release(self, name: str) -> None:
        for copy in (name, f"{name} inside", f"{name} channels-last", f"{name} planar"):
            self.arena.release(copy)

    def _write_output(self, name: str) -> Value:
        """Copy the result to where the caller wants it, rows side by side."""
        value = self.planar(name)
        if value.memory == OUTPUT:
            return value
        size = value.count * value.itemsize
        self.emit(opcodes.COPY, value.start(), reference(OUTPUT), value.row_step, size, size)
        return value
