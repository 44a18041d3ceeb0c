"""What a teaching milestone promises, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlperf_opt.errors import ConfigError, did_you_mean
from mlperf_opt.records import Record
from mlperf_opt.report.grid import NOT_MEASURED, Grid, build_grid, fraction, to_rich, with_interval
from mlperf_opt.settings import build_settings, require

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Promise:
    """One line of the milestone.

    Attributes:
        step: name of the step that has to keep it.
        label: how the milestone calls it.
        weights_ratio: promised size, as a ratio to the baseline; None if none was promised.
        quality_low, quality_high: promised range of the accuracy, 0..1; None if none was promised.
    """

    step: str
    label: str
    weights_ratio: float | None = None
    quality_low: float | None = None
    quality_high: float | None = None

    def __post_init__(self) -> None:
        if self.weights_ratio is not None:
            require(self.weights_ratio > 0, "weights_ratio", self.weights_ratio, "more than 0")
        if self.quality_low is not None or self.quality_high is not None:
            low, high = self.quality_low, self.quality_high
            ordered = low is not None and high is not None and 0 <= low <= high <= 1
            require(ordered, "quality_low", f"{low}, quality_high={high}", "both, with 0 <= low <= high <= 1")


def milestone_grid(records: Sequence[Record], promises: Sequence[Mapping[str, Any]]) -> Grid:
    """Return the table of promises, in their order.

    A promised size is met by any weights that are not larger. An accuracy is better, within or worse by its measured
    value; the interval beside it says how far to trust the word.

    Args:
        records: of the run.
        promises: mappings with the fields of `Promise`, as a pipeline holds them.

    Raises:
        ConfigError: a promise is malformed, or names a step that the run doesn't have.
    """
    steps = {record.name: record for record in records}
    cells = []
    for place, mapping in enumerate(promises):
        promise = build_settings(Promise, mapping, f"promises[{place}]")
        if promise.step not in steps:
            raise ConfigError(f"promises[{place}].step={promise.step}: no such step{did_you_mean(promise.step, steps)}")
        record = steps[promise.step]
        cells.append(
            {
                "promise": promise.label,
                "step": promise.step,
                "promised\nsize": fraction(promise.weights_ratio),
                "measured\nsize": fraction(record.weights_ratio),
                "size": _judge_size(promise, record.weights_ratio),
                "promised\naccuracy": _range(promise),
                "measured\naccuracy": with_interval(fraction(record.quality), record.quality_low, record.quality_high, 3),
                "accuracy": _judge_quality(promise, record.quality),
            }
        )
    return build_grid(cells, left=("promise", "step", "size", "accuracy"))


def milestone_table(records: Sequence[Record], promises: Sequence[Mapping[str, Any]]) -> Table:
    """Return `milestone_grid` for the terminal."""
    return to_rich(milestone_grid(records, promises))


def _judge_size(promise: Promise, ratio: float | None) -> str:
    if promise.weights_ratio is None or ratio is None:
        return NOT_MEASURED
    return "met" if ratio <= promise.weights_ratio else "missed"


def _range(promise: Promise) -> str:
    if promise.quality_low is None:
        return NOT_MEASURED
    return f"{promise.quality_low:.3f}..{promise.quality_high:.3f}"


def _judge_quality(promise: Promise, quality: float | None) -> str:
    if promise.quality_low is None or promise.quality_high is None or quality is None:
        return NOT_MEASURED
    if quality > promise.quality_high:
        return "better"
    return "within" if quality >= promise.quality_low else "worse"
