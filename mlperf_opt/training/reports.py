"""What training tells those who watch it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlperf_opt.graph import Graph


@dataclass(frozen=True)
class StepReport:
    """What is known after a step.

    Attributes:
        step, steps: its number, and of how many in all epochs.
        loss: mean loss of the epoch so far.
    """

    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class EpochReport:
    """What is known after an epoch.

    Attributes:
        epoch, epochs: its number, and of how many.
        loss, accuracy: mean loss, and share of targets predicted, over the batches as they were trained on.
        seconds: what it took, of one that was interrupted the rest.
        graph: the network as it would be returned now.
        row: what was observed of it.
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    seconds: float
    graph: Graph = field(repr=False)
    row: dict[str, Any] = field(default_factory=dict)
