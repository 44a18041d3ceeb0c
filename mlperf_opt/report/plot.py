"""Error against bytes as a picture, by matplotlib: the same rows give the same bytes of SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from mlperf_opt.report.frontier import Panel, Series
from mlperf_opt.report.grid import size
from mlperf_opt.report.side_by_side import PROPORTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png"]

# Okabe and Ito's colours, told apart with any kind of colour vision; the marker tells them apart in grey, too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "v", "P", "X", "d", "<", ">")
_PUBLISHED_MARKERS = ("*", "D", "p", "h")
_TICKS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)
_LINEAR_UP_TO = 1.0  # of a loss: an error of 0 has a place, and one of 90 % doesn't press the others together
_WIDE = 1e4  # from this range of sizes on, three times each power of ten has no room for a label
_PANEL_INCHES = (6.4, 4.0)
_LEGEND_LINE_INCHES = 0.21
_LOSSES = {"accuracy": "error (% of samples)", "exact_match": "error (% of sequences)", "nats_per_token": "nats per token"}


def draw(panels: Sequence[Panel], kind: Format) -> bytes:
    """Return the picture: a panel above the other, each with its legend below it.

    Loss upwards, linear up to 1 and logarithmic above; bytes of the whole file to the right, logarithmic. Bars are 95 %
    intervals. Published points are hollow and not joined.
    """
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()  # not those of the user: the picture depends on the rows alone
        mpl.rcParams.update({"svg.hashsalt": "mlperf_opt", "font.size": 9, "axes.axisbelow": True})
        figure = build_figure(panels)
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def build_figure(panels: Sequence[Panel]) -> Figure:
    """Return the figure that `draw` writes, not rendered yet."""
    from matplotlib.figure import Figure

    width, height = _PANEL_INCHES
    lines = sum(len(panel.series) + len(panel.published) for panel in panels)
    figure = Figure((width, height * len(panels) + _LEGEND_LINE_INCHES * lines), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _fill(axes, panel)
    return figure


def _fill(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

    handles: list[Any] = []
    for place, series in enumerate(panel.series):
        colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
        style = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1, "elinewidth": 0.8}
        x, y, bars = _coordinates(series)
        handles.append(axes.errorbar(x, y, bars, label=_ends(series, panel.metric), zorder=3, **style))
    for place, series in enumerate(panel.published):
        x, y, _ = _coordinates(series)
        marker = _PUBLISHED_MARKERS[place % len(_PUBLISHED_MARKERS)]
        style = {"color": "none", "edgecolor": "#444444", "marker": marker, "s": 60, "linewidth": 1.1}
        handles.append(axes.scatter(x, y, label=f"{series.name}, published", zorder=4, **style))
    drawn = [point for series in (*panel.series, *panel.published) for point in series.points]
    sizes = [point.file_bytes for point in drawn]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 2, max(sizes) * 2)
    wide = max(sizes) > _WIDE * min(sizes)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 3.0)))
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("symlog", linthresh=_LINEAR_UP_TO)
    axes.set_ylim(-0.05, max(point.high for point in drawn) * 1.15 + 0.1)
    axes.yaxis.set_major_locator(FixedLocator(_TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_title(f"{panel.model} on {panel.data}, {panel.split} split")
    axes.set_xlabel("size of the file (bytes)")
    axes.set_ylabel(_LOSSES[panel.metric])
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, borderaxespad=0)


def _coordinates(series: Series) -> tuple[list[int], list[float], tuple[list[float], list[float]]]:
    points = series.points
    bars = [max(0.0, p.loss - p.low) for p in points], [max(0.0, p.high - p.loss) for p in points]
    return [p.file_bytes for p in points], [p.loss for p in points], bars


def _ends(series: Series, metric: str) -> str:
    """The name in the legend, with the numbers of the smallest file."""
    best = min(series.points, key=lambda point: point.file_bytes)
    return f"{series.name}: down to {size(best.file_bytes)} at {best.loss:.2f}{' %' if metric in PROPORTIONS else ' nats'}"
