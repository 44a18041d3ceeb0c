"""What was promised, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlperf_opt.report.grid import Grid, build_grid


@dataclass(frozen=True)
class Target:
    """One promise.

    Attributes:
        what: in words, with its unit or whom it is against.
        wanted: the least that it promises; a percentage where ``unit`` is %, else a factor.
        measured: None: not measured in this run.
        unit: x or %.
    """

    what: str
    wanted: float
    measured: float | None
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """met, missed, or - where it wasn't measured."""
        if self.measured is None:
            return "-"
        return "met" if self.measured >= self.wanted else "missed"


def figure(value: float | None, unit: str = "x") -> str:
    """A factor (3 digits) or a percentage, rounded towards missing: 4.996 is no 5."""
    if value is None:
        return "-"
    digits = 0 if value >= 100 else 1 if value >= 10 or unit == "%" else 2
    scale = 10**digits
    return f"{int(value * scale + 1e-9) / scale:.{digits}f}{unit}"


def digits(value: float) -> str:
    """A measured number with three digits, or all of them before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def target_grid(targets: Sequence[Target]) -> Grid:
    """The promises as a table."""
    rows = [
        {
            "promised": target.what,
            "measured": figure(target.measured, target.unit),
            "wanted": f"{target.wanted:g}{target.unit}",
            "": target.verdict,
        }
        for target in targets
    ]
    return build_grid(rows, left=("promised", ""))
