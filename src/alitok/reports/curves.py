"""Curves of a run: one figure from its CSV log."""

import csv
from collections import defaultdict
from pathlib import Path

from alitok.common.files import atomic_file

Curve = list[tuple[int, float]]


def read_curves(run: str | Path) -> dict[str, Curve]:
    """Metric name -> [(step, value), ...] from the CSV logs in a run's folder, merged over resumptions."""
    points: dict[str, dict[int, float]] = defaultdict(dict)
    for file in sorted(Path(run).glob("logs/*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with open(file, newline="") as handle:
            for row in csv.DictReader(handle):
                # a row that a kill or a full disk has cut lacks values, or has those of the next row behind them
                if not str(row.get("step")).isdecimal() or None in row or None in row.values():
                    continue
                for name, text in row.items():
                    if text and name not in ("step", "epoch", "images_seen"):
                        points[name][int(row["step"])] = float(text)
    return {name: sorted(values.items()) for name, values in points.items()}


def plot_curves(curves: dict[str, Curve], path: str | Path) -> None:
    """Plot one panel per metric, training and validation together, as PNG or SVG by the file's suffix."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels: dict[str, list[str]] = defaultdict(list)
    for name in curves:
        panels[name.removeprefix("train/").removeprefix("val/")].append(name)
    columns = 3
    rows = max(1, -(-len(panels) // columns))
    width, height = 4 * columns, 2.6 * rows
    figure = Figure(figsize=(width, height))
    # a fixed layout in inches, and few ticks: measuring labels takes far longer than drawing the curves
    figure.subplots_adjust(0.6 / width, 0.3 / height, 1 - 0.15 / width, 1 - 0.3 / height, wspace=0.2, hspace=0.28)
    for place, (title, names) in enumerate(sorted(panels.items()), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for name in names:
            steps, values = zip(*curves[name], strict=True)
            axes.plot(steps, values, label=name.split("/")[0], linewidth=1)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(names) > 1:
            axes.legend(fontsize=7)
    with atomic_file(path) as temporary:
        figure.savefig(temporary)
