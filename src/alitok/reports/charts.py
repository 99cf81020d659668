"""Line charts for the pages, as SVG pictures, and numbers as text."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from alitok.reports.curves import Curve

WIDTH, HEIGHT = 360, 200
GRAY, BLUE = "#8b8f98", "#4f7fe0"  # mid tones, readable on light and on dark pages
# metric -> title, unit; in the order of a page. Other metrics are folded away.
METRICS: dict[str, tuple[str, str]] = {
    "loss": ("Loss", ""),
    "psnr": ("PSNR", "dB"),
    "codebook_usage": ("Codebook usage", "%"),
    "token_accuracy": ("Next token guessed", "%"),
}
NOT_LOSSES = {"psnr", "ssim", "codebook_usage", "codebook_perplexity", "token_accuracy", "token_nats"}


def chart(
    part: str,
    title: str,
    unit: str,
    lines: Mapping[str, Curve],
    may_be_log: bool,
    colors: Mapping[str, tuple[str, bool]],
) -> dict[str, Any]:
    """A line chart, for the template.

    Args:
        part: part of the run, for the alternative text.
        unit: with "%" values are shares in [0, 1].
        lines: name -> [(step, value), ...], at least one point each, finite.
        may_be_log: use a logarithmic axis if all values are positive and span a decade.
        colors: name -> (color, whether dashed).
    """
    values = [value for points in lines.values() for _, value in points]
    log = may_be_log and min(values) > 0 and max(values) >= 10 * min(values)
    ends: list[dict[str, Any]] = []
    for name, points in lines.items():
        color, dashed = colors[name]
        ends.append({"name": name, "value": number(points[-1][1], unit), "color": color, "dashed": dashed})
    spoken = ", ".join(f"{end['name']} ends at {end['value']}" for end in ends)
    source = base64.b64encode(svg(unit, lines, log, colors)).decode("ascii")
    return {
        "title": title,
        "units": ", ".join(filter(None, (unit if unit != "%" else "", "log scale" if log else ""))),
        "ends": ends,
        "image": {
            "src": f"data:image/svg+xml;base64,{source}",
            "width": WIDTH,
            "height": HEIGHT,
            "alt": f"{part}: {title}, {spoken}",
        },
    }


def svg(unit: str, lines: Mapping[str, Curve], log: bool, colors: Mapping[str, tuple[str, bool]]) -> bytes:
    """The chart's lines and axes, transparent."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    # text as text, and the same file from the same curves
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "alitok", "font.size": 9}):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        axes = figure.add_subplot()
        for name, points in lines.items():
            points = points[:: -(-len(points) // 400)]
            color, dashed = colors[name]
            marker = "o" if len(points) <= 25 else ""
            steps, values = zip(*points, strict=True)
            style: dict[str, Any] = {
                "color": color,
                "marker": marker,
                "markersize": 3,
                "linewidth": 1.5,
                "clip_on": False,
            }
            axes.plot(steps, values, "--" if dashed else "-", **style)
        if log:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        if unit == "%":
            low, high = axes.get_ylim()  # no share exceeds the whole
            axes.set_ylim(max(low, 0), min(high, 1))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("step", loc="right", color=GRAY)
        axes.grid(axis="y", color=GRAY, alpha=0.25)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        axes.tick_params(which="both", colors=GRAY, length=0)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return file.getvalue()


def chart_part(
    title: str,
    curves: Mapping[str, Mapping[str, Curve]],
    titles: Mapping[str, tuple[str, str]],
    order: Sequence[str],
    colors: Mapping[str, tuple[str, bool]],
) -> dict[str, Any] | None:
    """The charts of one part of a run, for the template; None if nothing finite was logged.

    Args:
        curves: chart -> name of a line -> points.
        titles: chart -> title, unit.
        order: the charts that are shown; the others are folded away.
        colors: see `chart`.
    """
    charts = {}
    for key, lines in curves.items():
        finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in lines.items()}
        finite = {name: points for name, points in finite.items() if points}
        if finite:
            charts[key] = chart(title, *titles[key], finite, key.rpartition("/")[2] not in NOT_LOSSES, colors)
    if not charts:
        return None
    main = [key for key in order if key in charts]
    return {
        "title": title,
        "main": [charts[key] for key in main],
        "rest": [charts[key] for key in sorted(charts) if key not in main],
    }


def number(value: Any, unit: str) -> str:
    """A number with its unit, as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if unit == "%":
        return f"{100 * value:.1f}\xa0%"
    if unit == "dB":
        return f"{value:.1f}\xa0dB"
    if unit == "bytes":
        return f"{value / 1e9:.2f}\xa0GB"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Seconds as text: in seconds, minutes or hours."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 10:
        return f"{seconds:.1f}\xa0s"
    if minutes < 1:
        return f"{rest}\xa0s"
    return f"{minutes // 60}\xa0h {minutes % 60}\xa0min" if minutes >= 60 else f"{minutes}\xa0min {rest}\xa0s"
