"""An op's ONNX mapping as plain data, and the fragments that several mappings share.

A mapping is a function of the op's specs and attributes (as ``infer`` is) that returns the operators of ONNX's standard set,
opset 20, that compute the same. It is data: `onnx` itself is imported by the exporter alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError
from mlperf_opt.ops.base import Dim

Array = NDArray[Any]
OUT = "out"  # what a mapping calls the value of the op
# ONNX's numbers of the element types (TensorProto.DataType): part of the format
TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}


@dataclass(frozen=True)
class OnnxNode:
    """One ONNX operator of a mapping.

    Attributes:
        kind: its ONNX type, e.g. ``MatMul``.
        inputs: each the name of an argument of the op, of an earlier node's output, an array (a constant), or ``""`` for an
            optional input that is absent. ``weight.T`` is a matrix with its two axes exchanged: a weight is stored so.
        output: `OUT` for the value of the op, else a name within the mapping.
        attributes: ONNX attributes: numbers, texts, lists of whole numbers.
    """

    kind: str
    inputs: tuple[str | Array, ...]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)


Form = tuple[OnnxNode, ...]


def node(kind: str, *inputs: str | Array | np.generic, to: str = OUT, **attributes: Any) -> OnnxNode:
    """Return an `OnnxNode` that writes ``to``."""
    return OnnxNode(kind, tuple(i if isinstance(i, str) else np.asarray(i) for i in inputs), to, attributes)


def cast(x: str, dtype: str, to: str = OUT) -> OnnxNode:
    """Return the conversion of ``x`` to ``dtype``."""
    return OnnxNode("Cast", (x,), to, {"to": TYPES[dtype]})


def direct(kind: str, *arguments: str, **attributes: Any) -> Callable[..., Form]:
    """Return the mapping of an op that is one ONNX operator on its ``arguments``, whatever their specs."""
    form = (node(kind, *arguments, **attributes),)
    return lambda *_specs: form


def ints(*values: int) -> Array:
    """Return the int64 vector that ONNX takes for shapes, axes and places."""
    return np.array(values, np.int64)


def known(dim: Dim, what: str) -> int:
    """Return ``dim`` as a number. Raises `GraphError` where it is named: an ONNX constant depends on it."""
    if not isinstance(dim, int):
        raise GraphError(f"no ONNX form: {what} must be a number, and is {dim!r}")
    return dim


def length(of: str, axis: int, to: str) -> Form:
    """The length of one axis of a value, int64 ()."""
    return (node("Shape", of, to=f"{to}_shape"), node("Gather", f"{to}_shape", np.int64(axis), to=to, axis=0))


def counted(of: str, axis: int, to: str) -> Form:
    """0, 1, ... up to the length of one axis of a value, int64."""
    return (*length(of, axis, f"{to}_end"), node("Range", np.int64(0), f"{to}_end", np.int64(1), to=to))


def then_add(product: OnnxNode, term: str | Array | None) -> Form:
    """``product`` plus ``term`` where there is one: the value of the op."""
    if term is None:
        return (product,)
    return replace(product, output="product"), node("Add", "product", term)
