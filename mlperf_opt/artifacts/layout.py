"""The JSON of a model file: the graph's structure and the encoding of each array; read without trusting a number in it.

A checksum finds damage, but anybody can make a checksum: this is where a file that promises a trillion elements, unpacks to
gigabytes of JSON or names a weight twice is refused, before memory is asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mlperf_opt.errors import ArtifactError, GraphError
from mlperf_opt.graph import array_specs
from mlperf_opt.ops import Spec

MAX_JSON_BYTES = 8 << 20
MAX_NODES = 10_000
_MAX_AXES = 32
_MAX_DIM = 2**31 - 1
# An array of equal numbers takes a few bytes in a file whatever its size, so the size in memory is bounded: so much for any
# file, which is room for 16 million float32 weights of any sparsity, and more for a larger one.
_FREE_BYTES = 64 << 20
_BYTES_PER_BYTE = 64

# What can be raised when names, types and numbers in JSON are arbitrary.
MALFORMED = (GraphError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


@dataclass(frozen=True)
class Layout:
    """What a file says about itself.

    Attributes:
        structure: the graph without its arrays, as `mlperf_opt.graph.structure` gives it.
        encodings: for each array, in the order of `mlperf_opt.graph.array_specs`: a name, or ``["product", a, b]``.
    """

    structure: dict[str, Any]
    encodings: list[Any]

    @property
    def specs(self) -> dict[str, Spec]:
        """Name -> shape and dtype of every array."""
        return array_specs(self.structure)

    def to_text(self) -> bytes:
        """Return the JSON that stands, compressed, in the file."""
        return json.dumps({"graph": self.structure, "arrays": self.encodings}, separators=(",", ":")).encode()


def read_layout(text: bytes, file_bytes: int) -> Layout:
    """The inverse of `Layout.to_text`.

    Args:
        text: the JSON from a file, of at most `MAX_JSON_BYTES`.
        file_bytes: size of that file, which bounds the size of the arrays that it may describe.

    Returns:
        A layout whose specs can be trusted: arrays of those sizes may be allocated. The nodes are unchecked.

    Raises:
        ArtifactError: bytes that no writer makes. The message doesn't name the path.
    """
    try:
        data = json.loads(text)
        layout = Layout(data["graph"], data["arrays"])
        _expect(len(layout.structure["nodes"]) <= MAX_NODES, f"it has more than {MAX_NODES} nodes")
        _expect(isinstance(layout.encodings, list), "the encodings must be a list")
        _expect(len(layout.encodings) == len(layout.specs), "it must give one encoding for each array")
        size = sum(_nbytes(name, spec) for name, spec in layout.specs.items())
        _expect(size <= _FREE_BYTES + _BYTES_PER_BYTE * file_bytes, f"arrays of {size} bytes can't be in this file")
    except MALFORMED as error:
        raise ArtifactError(f"the structure of its graph is malformed: {error}") from None
    return layout


def _nbytes(name: str, spec: Spec) -> int:
    """Size in memory, after a check that no dimension is absurd: the product of huge numbers is work too."""
    is_sane = len(spec.shape) <= _MAX_AXES and all(isinstance(dim, int) and dim <= _MAX_DIM for dim in spec.shape)
    _expect(is_sane, f"the array {name!r} has an impossible shape")
    return spec.nbytes


def _expect(ok: bool, fact: str) -> None:
    if not ok:
        raise ValueError(fact)
