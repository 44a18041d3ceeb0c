"""What a pass is: a pure function from graph to graph, with its settings, its documentation and its contract in one class.

A pass does no I/O: the runner saves, measures and reports. Order is data: it comes from the configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mlperf_opt.data import Dataset
from mlperf_opt.graph import Graph
from mlperf_opt.runtimes import Runtime

Effect = Literal["keeps_weights", "quantizes", "discards_weights", "retrains"]


@dataclass(frozen=True)
class PassContext:
    """What the runner hands in.

    Attributes:
        data: train, calibration and test split; a pass may look at the first two only.
        seed: of anything random.
        runtime: what the model will run on.
        progress: shows one line of text to whoever waits.
        baseline: the network before the first step: a teacher for distillation.
        checkpoint: where a training keeps its state, so that an interrupted run goes on from it; None for nowhere.
    """

    data: Dataset
    seed: int
    runtime: Runtime
    progress: Callable[[str], None] = lambda _line: None
    baseline: Graph | None = None
    checkpoint: Path | None = None


@dataclass(frozen=True)
class PassResult:
    """What a pass returns.

    Attributes:
        graph: the new graph (the given one where nothing changed).
        stats: facts for the log, JSON-ready.
        tables: what the rows are -> rows; the runner writes each beside the step's model file, as ``<step>-<what>.csv``.
        files: ending -> content; the runner writes each beside the step's model file, under its name with that ending.
        notes: what a reader of the table should know, a sentence each; they end in the row's ``reasons``.
    """

    graph: Graph
    stats: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. A subclass is a frozen dataclass: its fields are the settings, its docstring is the help.

    Class attributes:
        effect: what it does to the weights; the report derives the closed-style or open-style label from it.
        tolerance: 0.0 for a pass that at its defaults leaves the outputs equal up to rounding; otherwise the loss of
            quality, as a fraction, that it may then cause on a shipped model.
        not_after: names of passes that may not come before it in the list.
    """

    effect: ClassVar[Effect]
    tolerance: ClassVar[float]
    not_after: ClassVar[tuple[str, ...]] = ()

    def check(self, graph: Graph) -> None:  # noqa: B027 - most passes take any graph
        """Raise `PassError` if the pass can't work on ``graph``: called before anything runs, and on the real input."""

    def is_exact(self, graph: Graph) -> bool:
        """Return whether with these settings ``graph`` keeps its outputs up to rounding: then the runner checks it."""
        return self.tolerance == 0

    @abstractmethod
    def __call__(self, graph: Graph, context: PassContext) -> PassResult:
        """Return the new graph; ``graph`` itself is never changed."""
