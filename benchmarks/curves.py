"""The picture of what `context.py` has measured and kept."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

IMAGES = (".svg", ".png", ".pdf")


def draw(source: Path, image: Path) -> None:
    """Draw kept times as curves on logarithmic axes; the ending of ``image`` says the format."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with source.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curves[row["subject"]].append((int(row["context"]), float(row["token_us"])))
    mpl.rcParams["svg.hashsalt"] = "mlperf_opt"  # the same times give the same picture
    figure = Figure((8, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        line = {"linestyle": ":" if "no cache" in name else "-", "color": "black" if name.startswith("torch") else None}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name, **line)
    axes.set(xscale="log", yscale="log", xlabel="tokens in sight", ylabel="microseconds for a token")
    contexts = sorted({context for points in curves.values() for context, _ in points})
    axes.set_xticks(contexts, [str(context) for context in contexts], minor=False)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(image, metadata={"Date": None} if image.suffix == ".svg" else None)
