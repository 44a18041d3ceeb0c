"""What a runtime is: it prepares a graph once, and gives something to call.

A graph without state is a function of its inputs. A graph with state (a KV cache) is also that (each call is a fresh
prefill of whole sequences), and can be started as a session that keeps its state from call to call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from mlperf_opt.graph import Graph, Node

Array = NDArray[Any]
Sparse = Literal["auto", "never", "always"]
Isa = Literal["auto", "vnni", "portable"]
Observer = Callable[[Node, Array, int], None]  # (node, its value, nanoseconds it took)


class Session(Protocol):
    """Generation with explicit state; each row of the batch has its own position.

    Attributes:
        positions: tokens that each row holds, int64 (N,).
        state_bytes: bytes of the preallocated state.
    """

    @property
    def positions(self) -> Array: ...

    @property
    def state_bytes(self) -> int: ...

    def prefill(self, tokens: Array, lengths: Array | None = None) -> Array:
        """Append the first lengths[n] of tokens[n] (N, T) to each row; return the logits (N, V) after each row's last.

        Raises:
            SessionError: a length below 1 or above T, a wrong batch, or more tokens than the cache has room for.
        """
        ...

    def decode(self, tokens: Array) -> Array:
        """Append one token (N,) to each row; return the logits (N, V). Raises `SessionError` when a row is full."""
        ...

    def truncate(self, length: int | Array) -> None:
        """Forget all but the first ``length`` tokens, of all rows or (N,).

        Raises:
            SessionError: outside 0..position, or tokens that the last of them would see have left the window.
        """
        ...


class Executable(Protocol):
    """A prepared graph. Inputs are given in the order of ``graph.inputs``, without the lengths of a cached graph."""

    graph: Graph

    @property
    def notes(self) -> Mapping[str, str]:
        """What was decided about how a node runs, in words, by the node's name; only where there was a choice."""
        ...

    @property
    def workspace_bytes(self) -> int:
        """Bytes of activations that were allocated once, before the first call; a call's own come on top."""
        ...

    def __call__(self, *inputs: Array) -> Array:
        """Run the graph and return its first output.

        Raises:
            GraphError: another number of inputs than the graph takes.
            SessionError: a cached graph's tokens are none, or more than its context.
        """
        ...

    def observe(self, observer: Observer, *inputs: Array) -> Array:
        """Run node by node and tell the observer of each; slower than a call, and the same result.

        float32 layers that run sparse give it within rounding: what is sparse depends on how many rows run at once.

        Raises:
            GraphError: inputs that a call would refuse, too.
        """
        ...

    def start(self, batch: int, max_length: int) -> Session:
        """Start a session for ``batch`` rows of at most ``max_length`` tokens.

        Raises:
            SessionError: a batch or length below 1, longer than the model's context (where a window moves along over
                distances alone, any length will do), or a graph without state.
        """
        ...


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime executes.

    Attributes:
        threads: for batch work; results don't depend on it.
        isa: of int8 products: auto (the fastest instructions that the CPU has), vnni (at most AVX-512 VNNI, no AMX) or
            portable (none made for them). The results are the same.
        sparse: how pruned linear layers run: auto (sparse where a layer of half zeros or more is faster so on this machine),
            never or always. int8 results are the same, float32 ones within rounding.
    """

    threads: int = 1
    isa: Isa = "auto"
    sparse: Sparse = "auto"


@dataclass(frozen=True)
class Runtime:
    """A named way to execute graphs.

    Attributes:
        name: its name in configurations and records.
        make: (graph, options) -> executable; raises `GraphError` for an op that it lacks.
        options: how.
        require: raises `ConfigError` if what it needs isn't installed: asked before any work.
        exact: whether arithmetic on codes gives the same bits as in the numpy runtime.
        traced: whether what a call allocates is seen by tracemalloc, so that its peak can be measured.
    """

    name: str
    make: Callable[[Graph, RuntimeOptions], Executable]
    options: RuntimeOptions = RuntimeOptions()
    require: Callable[[], None] = lambda: None
    exact: bool = False
    traced: bool = True

    def prepare(self, graph: Graph) -> Executable:
        """Return the graph, ready to be called."""
        return self.make(graph, self.options)

    def configured(self, options: RuntimeOptions) -> Runtime:
        """Return this runtime with other options.

        Raises:
            ConfigError: a module that it needs is not installed.
        """
        self.require()
        return replace(self, options=options)
