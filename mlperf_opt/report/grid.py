"""A table as text: one shape that goes to the terminal and to Markdown, and how its cells are worded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

NOT_MEASURED = "-"
_LINE = 100
_STYLES = {
    **dict.fromkeys(("INVALID", "missed", "worse"), "bold red"),
    **dict.fromkeys(("ok", "met", "better"), "green"),
    **dict.fromkeys((NOT_MEASURED, "same", "within noise"), "dim"),
}


@dataclass(frozen=True)
class Grid:
    """Rows of cells under headers, all of them text.

    Attributes:
        headers: one a column; a newline in one breaks it in the terminal.
        rows: each as long as the headers.
        left: headers of the columns that are aligned left; numbers stand right.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[str]


def build_grid(rows: Sequence[Mapping[str, str]], left: Sequence[str]) -> Grid:
    """Build a grid from rows with the same keys in the same order."""
    headers = tuple(rows[0]) if rows else ()
    return Grid(headers, tuple(tuple(row[header] for header in headers) for row in rows), frozenset(left))


def to_rich(grid: Grid) -> Table:
    """Return the grid as a rich table without a frame; the cells are literal, ``[quant,prune]`` included."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # The box has one space between columns; a second one where the line has room for it.
    padding = (0, 1, 0, 0) if _width(grid) + len(grid.headers) - 1 <= _LINE else 0
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding, header_style="bold")
    for header in grid.headers:
        left = header in grid.left
        # Too narrow a terminal folds a cell; it never cuts a number short.
        table.add_column(Text(header), justify="left" if left else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return table


def markdown(grid: Grid, title: str, notes: Sequence[str]) -> str:
    """Return the grid as a Markdown page: a title, the table, and the notes as a list."""
    dashes = ["---" if header in grid.left else "---:" for header in grid.headers]
    lines = [grid.headers, dashes, *grid.rows]
    table = ["| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines]
    return "\n".join([f"# {title}", "", *table, "", *(f"- {' '.join(note.split())}" for note in notes), ""])


def _width(grid: Grid) -> int:
    """Columns that the table needs with one space between its columns."""
    lines = [grid.headers, *grid.rows]
    widths = (max(len(part) for cell in column for part in cell.split("\n")) for column in zip(*lines, strict=True))
    return sum(widths) + len(grid.headers) - 1


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|")


def measured(value: Any) -> bool:
    """True for a value that is there: not None, not pandas' NA, not NaN."""
    # pandas.NA has no truth value, and importing pandas to name it would slow every table
    return value is not None and type(value).__name__ != "NAType" and bool(value == value)  # noqa: PLR0124


def size(value: Any) -> str:
    """Bytes for people, in powers of 1000: ``9.64 kB``."""
    return _scaled(value, (("B", 1), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)))


def duration(value: Any) -> str:
    """Microseconds for people: ``12.3 us``, ``4.56 ms``."""
    return _scaled(value, (("us", 1), ("ms", 1e3), ("s", 1e6)))


def count(value: Any) -> str:
    """A number of things: exact with thousands separators up to a million, then ``1.23 M``."""
    if not measured(value):
        return NOT_MEASURED
    return f"{value:,}" if value < 1e6 else _scaled(value, (("M", 1e6), ("G", 1e9), ("T", 1e12)))


def fraction(value: Any) -> str:
    """A fraction or a ratio with three decimals."""
    return f"{value:.3f}" if measured(value) else NOT_MEASURED


def signed(value: Any) -> str:
    """A difference of fractions with its sign: ``-0.012``."""
    if not measured(value):
        return NOT_MEASURED
    return f"{value:+.3f}" if abs(value) >= 0.0005 else "0.000"


def times(value: Any) -> str:
    """A factor with three digits: ``1.85x``, ``12.3x``."""
    if not measured(value):
        return NOT_MEASURED
    return f"{value:.2f}x" if value < 10 else f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def with_interval(text: str, low: Any, high: Any, decimals: int) -> str:
    """Add half the width of an interval: ``0.957 ±0.016``."""
    if not (measured(low) and measured(high)) or text == NOT_MEASURED:
        return text
    return f"{text} ±{(high - low) / 2:.{decimals}f}"


def _scaled(value: Any, units: Sequence[tuple[str, float]]) -> str:
    """The number with three digits in the largest unit that it fills."""
    if not measured(value):
        return NOT_MEASURED
    # 0.9995: what would round to 1000 of the smaller unit is 1 of this one
    unit, scale = max((unit for unit in units[1:] if value >= 0.9995 * unit[1]), key=lambda unit: unit[1], default=units[0])
    number = value / scale
    if unit == "B":
        return f"{number:.0f} B"
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f} {unit}"
