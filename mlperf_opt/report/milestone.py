"""What a milestone or a paper promises, beside what was measured."""

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
    """One line of a milestone's or a paper's table. What wasn't promised is None.

    Attributes:
        step: name of the step that has to keep it.
        label: how the milestone calls it.
        weights_ratio: the size of the weights, as a ratio to the baseline's.
        times_smaller: how many times smaller than the baseline's the whole file is, header and structure included.
        times_fewer: how many times fewer weights aren't zero than the baseline has.
        quality: the least accuracy, 0..1.
        quality_low, quality_high: instead of it a range of the accuracy.
    """

    step: str
    label: str
    weights_ratio: float | None = None
    times_smaller: float | None = None
    times_fewer: float | None = None
    quality: float | None = None
    quality_low: float | None = None
    quality_high: float | None = None

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("weights_ratio", "times_smaller", "times_fewer")}
        given = {name: size for name, size in sizes.items() if size is not None}
        for name, size in given.items():
            require(size > 0, name, size, "more than 0")
            require(len(given) == 1, name, size, f"one of {', '.join(given)}")
        if self.quality is not None:
            require(0 <= self.quality <= 1, "quality", self.quality, "0 to 1")
            require(self.quality_low is None, "quality", self.quality, "no range beside it")
        if self.quality_low is not None or self.quality_high is not None:
            low, high = self.quality_low, self.quality_high
            ordered = low is not None and high is not None and 0 <= low <= high <= 1
            require(ordered, "quality_low", f"{low}, quality_high={high}", "both, with 0 <= low <= high <= 1")


def milestone_grid(records: Sequence[Record], promises: Sequence[Mapping[str, Any]]) -> Grid:
    """Return the table of promises, in their order.

    A promised size is met by any that is not larger, a least accuracy by any that is not less; in a range an accuracy is
    better, within or worse. It is the measured value that counts; the interval beside it says how far to trust the word.

    Args:
        records: of the run.
        promises: mappings with the fields of `Promise`, as a pipeline holds them.

    Raises:
        ConfigError: a promise is malformed, or names a step that the run doesn't have.
    """
    steps = {record.name: record for record in records}
    measured = "calibration\naccuracy" if records[0].split == "calibration" else "measured\naccuracy"
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
                **_sizes(promise, record, records[0]),
                "promised\naccuracy": _range(promise),
                measured: _quality(promise, record),
                "accuracy": _judge_quality(promise, record.quality),
            }
        )
    return build_grid(cells, left=("promise", "step", "size", "accuracy"))


def milestone_table(records: Sequence[Record], promises: Sequence[Mapping[str, Any]]) -> Table:
    """Return `milestone_grid` for the terminal."""
    return to_rich(milestone_grid(records, promises))


def _sizes(promise: Promise, record: Record, baseline: Record) -> dict[str, str]:
    """Return the promised size, the measured one, and the verdict."""
    if promise.times_smaller is not None:
        found = None if record.file_ratio is None else 1 / record.file_ratio
        return _times(promise.times_smaller, found, "bytes")
    if promise.times_fewer is not None:
        known = record.nonzero and baseline.parameters
        return _times(promise.times_fewer, baseline.parameters / record.nonzero if known else None, "weights")  # type: ignore[operator]
    promised, ratio = promise.weights_ratio, record.weights_ratio
    verdict = NOT_MEASURED if promised is None or ratio is None else "met" if ratio <= promised else "missed"
    return {"promised\nsize": fraction(promised), "measured\nsize": fraction(ratio), "size": verdict}


def _times(promised: float, found: float | None, what: str) -> dict[str, str]:
    measured = NOT_MEASURED if found is None else f"{found:.1f}x {what}"
    verdict = NOT_MEASURED if found is None else "met" if found >= promised else "missed"
    return {"promised\nsize": f"{promised:.1f}x {what}", "measured\nsize": measured, "size": verdict}


def _quality(promise: Promise, record: Record) -> str:
    digits = 3 if promise.quality is None else 4  # a paper's errors differ by hundredths of a percent
    text = NOT_MEASURED if record.quality is None else f"{record.quality:.{digits}f}"
    return with_interval(text, record.quality_low, record.quality_high, digits)


def _range(promise: Promise) -> str:
    if promise.quality is not None:
        return f"{promise.quality:.4f}"
    if promise.quality_low is None:
        return NOT_MEASURED
    return f"{promise.quality_low:.3f}..{promise.quality_high:.3f}"


def _judge_quality(promise: Promise, quality: float | None) -> str:
    if promise.quality is not None and quality is not None:
        return "met" if quality >= promise.quality else "missed"
    if promise.quality_low is None or promise.quality_high is None or quality is None:
        return NOT_MEASURED
    if quality > promise.quality_high:
        return "better"
    return "within" if quality >= promise.quality_low else "worse"
