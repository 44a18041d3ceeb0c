"""What an op is: its shape rule, forward, gradient, cost and ONNX mapping, side by side in one `OpDef`.

Shapes are written with these letters throughout: N batch, T time, C channels, H height, W width, D model width,
K inputs of a product, M its outputs, V vocabulary, L capacity of a KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlperf_opt.errors import GraphError

if TYPE_CHECKING:
    from mlperf_opt.ops.onnx_form import Form

Array = NDArray[Any]
Dim = int | str  # a named dimension ("N", "T", "L") is known only when the graph runs


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array; a dimension may be named."""

    shape: tuple[Dim, ...]
    dtype: str

    def bound(self, dims: Mapping[str, int]) -> Spec:
        """Return this spec with its named dimensions replaced, e.g. ``{"N": 1}``."""
        return Spec(tuple(dims.get(d, d) if isinstance(d, str) else d for d in self.shape), self.dtype)

    @property
    def size(self) -> int:
        """Number of elements. Raises `GraphError` where a dimension is still named."""
        if any(isinstance(d, str) for d in self.shape):
            raise GraphError(f"the size of {self} is not known: bind its named dimensions first")
        return math.prod(int(d) for d in self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of such an array in memory."""
        return self.size * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Cost:
    """Work of one call: multiply-accumulates, and bytes read and written if every array is touched once."""

    macs: int
    bytes: int


@dataclass(frozen=True)
class OpDef:
    """One operation. All functions take the arguments in the order of ``arguments``, then the attributes by name.

    Attributes:
        name: the op's name in graphs and files.
        arguments: names of the array arguments; a trailing ``?`` marks one that may be absent (passed as None).
        infer: specs -> spec of the output; raises `GraphError` with the fact that is wrong.
        forward: arrays -> array.
        vjp: (gradient of the output, output, *arrays) -> one gradient per argument, None where there is none.
            None for an op without a gradient.
        cost: (output spec, *argument specs), all dimensions bound -> `Cost`.
        onnx: (*specs, **attributes) -> the ONNX operators that compute the same, as plain data (`onnx_form`); None for an
            op without a counterpart.
        parameters: the arguments that are trained weights of the network.
        matrix: the argument that multiplies the input: what quant and prune work on.
        skips_input_gradient: its vjp takes ``input_gradient=False`` too, and then leaves out the gradient of its first
            argument: nobody needs that of the data, and it costs as much as the forward pass.
        in_place: the argument whose buffer the op may overwrite and return (the state of a cache).
    """

    name: str
    arguments: tuple[str, ...]
    infer: Callable[..., Spec]
    forward: Callable[..., Array]
    vjp: Callable[..., tuple[Array | None, ...]] | None
    cost: Callable[..., Cost]
    onnx: Callable[..., Form] | None
    parameters: tuple[str, ...] = ()
    matrix: str | None = None
    skips_input_gradient: bool = False
    in_place: str | None = None

    def position(self, argument: str) -> int:
        """Return the index of an argument by its name."""
        return [a.rstrip("?") for a in self.arguments].index(argument)


def moved_bytes(out: Spec, *specs: Spec | None) -> int:
    """Bytes moved if each argument is read once and the output written once."""
    return out.nbytes + sum(spec.nbytes for spec in specs if spec is not None)


def no_macs(out: Spec, *specs: Spec | None, **_: Any) -> Cost:
    """Cost of an op that multiplies nothing (FLOPs are counted as 2 x MACs of the products alone)."""
    return Cost(0, moved_bytes(out, *specs))


@lru_cache(maxsize=8)
def ones(size: int, dtype: np.dtype) -> Array:
    """Ones (size,), not to be written to: a sum as a product with them takes half the time of numpy's own."""
    vector = np.ones(size, dtype)
    vector.setflags(write=False)
    return vector


def expect(ok: bool, fact: str) -> None:
    """Raise `GraphError` with ``fact`` unless ``ok``."""
    if not ok:
        raise GraphError(fact)


def expect_float(what: str, spec: Spec) -> None:
    """Raise `GraphError` unless ``spec`` holds floats: arithmetic on codes or token ids would wrap or change the dtype."""
    expect(spec.dtype.startswith("float"), f"{what} must be floats, got {spec}")


def is_whole(value: object, least: int) -> bool:
    """Return whether ``value`` is an int (no bool, no float such as 2.0) of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def are_known(*dims: Dim) -> bool:
    """Return whether every dimension is a number, not a name."""
    return all(isinstance(d, int) for d in dims)
