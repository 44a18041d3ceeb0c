"""The picture itself: the same bytes each time, nothing written over anything else, every series to be told apart."""

import itertools
import subprocess
import sys

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from mlperf_opt.report.frontier import Panel, Point, Series, published
from mlperf_opt.report.plot import build_figure, draw

_GAP = 3  # pixels, of 100 an inch
LENET = ("lenet300", "mnist", "test", "accuracy")


def series(name, *points):
    return Series(name, tuple(Point(size, loss, max(0.0, loss - 0.2), loss + 0.2) for size, loss in points))


def panel(*given, key=LENET):
    return Panel(*key, given, tuple(published(*key)))


MANY = panel(
    series("deep_compression", (1_067_000, 0.98), (99_000, 1.1), (17_700, 1.14)),
    series("smallest", (1_067_000, 0.98), (370_000, 12.0), (2_570, 1.05)),
    *(series(f"2026-11-24/12-00-0{place}-123456", (10 ** (place + 1), 9.0 * place)) for place in range(7)),
)
PANELS = {
    "one point": [panel(series("a", (540, 0.0)), key=("cnn", "digits", "test", "accuracy"))],
    "many runs": [MANY],
    "hopeless": [panel(series("a", (1_000, 90.0), (1_000_000, 0.5)))],
    "two panels": [MANY, panel(series("t", (20_000, 1.5)), key=("transformer", "text", "test", "nats_per_token"))],
}


def texts(figure):
    """Every visible text with its place in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    whole = figure.bbox
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in found}
    # ticks outside of the axes are there but not drawn
    return {
        text: box for text, box in boxes.items() if box.overlaps(whole) and text.axes is not None and _is_drawn(text, box)
    }


def _is_drawn(text, box):
    axes = text.axes.bbox
    labels = [*text.axes.get_xticklabels(), *text.axes.get_yticklabels()]
    if text not in labels:
        return True
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    return axes.x0 - 1 <= x <= axes.x1 + 1 or axes.y0 - 1 <= y <= axes.y1 + 1


def overlaps(figure):
    pairs = itertools.combinations(texts(figure).items(), 2)
    return [(a.get_text(), b.get_text()) for (a, one), (b, other) in pairs if one.padded(_GAP).overlaps(other)]


@pytest.mark.parametrize("name", PANELS)
def test_no_text_lies_over_another_or_leaves_the_picture(name):
    figure = build_figure(PANELS[name])
    assert overlaps(figure) == []
    for text, box in texts(figure).items():
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text.get_text()
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text.get_text()
    # no legend over the points
    for axes in figure.axes:
        assert not axes.get_legend().get_window_extent().overlaps(axes.bbox)


def test_a_text_over_another_would_be_seen():
    figure = build_figure(PANELS["one point"])
    axes = figure.axes[0]
    axes.text(0.5, 1.0, "in the way of the title", transform=axes.transAxes)
    assert [pair for pair in overlaps(figure) if "in the way of the title" in pair]


def test_axes_and_legend_say_what_is_drawn_and_in_which_unit():
    first, second = build_figure(PANELS["two panels"]).axes
    assert (first.get_xlabel(), first.get_ylabel()) == ("size of the file (bytes)", "error (% of samples)")
    assert (second.get_title(), second.get_ylabel()) == ("transformer on text, test split", "nats per token")
    lines = [text.get_text() for text in first.get_legend().get_texts()]
    assert lines[0] == "deep_compression: down to 17.7 kB at 1.14 %"
    assert lines[-2:] == ["Deep Compression (2015), published", "EPR (2019), published"]
    assert [text.get_text() for text in second.get_legend().get_texts()] == ["t: down to 20.0 kB at 1.50 nats"]
    assert first.get_xscale() == "log"


def test_every_point_is_within_the_axes():
    for axes, given in zip(build_figure(PANELS["two panels"]).axes, PANELS["two panels"], strict=True):
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for point in (point for one in (*given.series, *given.published) for point in one.points):
            assert left < point.file_bytes < right and bottom < point.loss <= point.high < top


def test_series_are_told_apart_by_marker_and_by_brightness_of_neighbours():
    containers = build_figure([MANY]).axes[0].containers
    marks = [(c.lines[0].get_color(), c.lines[0].get_marker()) for c in containers]
    assert len(set(marks)) == len(containers) == 9
    assert len({marker for _, marker in marks}) == 9, "also for who sees no colour"
    assert all(max(to_rgb(colour)) < 0.95 for colour, _ in marks), "none is too pale for paper"


@pytest.mark.parametrize("kind, start", [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_same_rows_give_the_same_bytes_in_another_process_too(kind, start, tmp_path):
    here = draw(PANELS["one point"], kind)
    assert here == draw(PANELS["one point"], kind) and here.startswith(start)
    code = f"""
import sys
from mlperf_opt.report.frontier import Panel, Point, Series
from mlperf_opt.report.plot import draw
one = Panel("cnn", "digits", "test", "accuracy", (Series("a", (Point(540, 0.0, 0.0, 0.2),)),), ())
sys.stdout.buffer.write(draw([one], {kind!r}))
"""
    # with somebody's own taste in matplotlib
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\naxes.facecolor: black\nsvg.fonttype: none\n")
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True).stdout == here
    assert draw(PANELS["hopeless"], kind) != here
    if kind == "svg":
        assert b"date" not in here.lower().split(b"<defs>")[0].replace(b"metadata", b"")


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 31}):
        draw(PANELS["one point"], "svg")
        assert mpl.rcParams["font.size"] == 31
