"""Line charts as inline SVG for the demo's page, and its numbers as text."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

Curve = list[tuple[int, float]]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 200, 48, 14, 10, 34


def chart(
    stage: str,
    title: str,
    unit: str,
    lines: Mapping[str, Curve],
    may_be_log: bool,
    kinds: Mapping[str, str] | None = None,
) -> str:
    """A line chart as inline SVG, coloured by the page's style sheet.

    Args:
        stage, title: what is drawn; the stage is only spoken.
        unit: "%" takes shares in [0, 1].
        lines: "train" or "val" (or any name, see `kinds`) -> [(step, value), ...], at least one point each, finite.
        may_be_log: take a logarithmic axis where all values are positive and span a decade.
        kinds: what the style sheet colours each line by; None for "train" and "val".
    """
    kinds = {split: "val" if split == "val" else "train" for split in lines} if kinds is None else kinds
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in lines.values() for _, value in points]
    log = may_be_log and min(values) > 0 and max(values) >= 10 * min(values)
    y_ticks = log_ticks(min(values), max(values)) if log else linear_ticks(min(values), max(values), 4)
    x_ticks = [tick for tick in linear_ticks(0, max(steps), 4) if tick <= max(steps)]
    if unit == "%":  # no share exceeds the whole
        y_ticks = [tick for tick in y_ticks if -1e-9 < tick < 1 + 1e-9]
    low, high = min(y_ticks[0], min(values)), max(y_ticks[-1], max(values))

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(*steps, 1)

    def y(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = []
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{_tick(tick, unit)}</text>')
    for tick in x_ticks:
        anchor = "middle" if x(tick) < WIDTH - RIGHT - 10 else "end"
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{tick:,.0f}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">step</text>')
    for split in sorted(lines):  # validation over training
        kind = kinds[split]
        dots = lines[split][:: -(-len(lines[split]) // 400)]
        path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in dots)
        parts.append(f'<path class="{kind}" d="M{path}"/>')
        if len(dots) <= 25:
            parts.extend(f'<circle class="{kind}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.4"/>' for s, v in dots)
    ends = {split: number(lines[split][-1][1], unit) for split in sorted(lines, reverse=True)}
    spoken = ", ".join(f"{escape(split)} ends at {end}" for split, end in ends.items())
    key = "".join(f'<span class="{escape(kinds[split])}">{escape(split)} {end}</span>' for split, end in ends.items())
    units = ", ".join(filter(None, (unit if unit != "%" else "", "log scale" if log else "")))
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{f" <small>{units}</small>" if units else ""}'
        f'<span class="key">{key}</span></figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(stage)}: {escape(title)}, {spoken}">{"".join(parts)}</svg></figure>'
    )


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high]; at least two."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        margin = abs(low) * 0.05 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [index * gap for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that cover [low, high], with 2 and 5 between them where they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [10.0**power for power in range(first, last + 1)]
    if last - first > 2:
        return ticks[:: -(-len(ticks) // 6)]
    fine = sorted(factor * 10.0**power for power in range(first, last) for factor in (1, 2, 5)) + ticks[-1:]
    start = max(index for index, tick in enumerate(fine) if tick <= low * (1 + 1e-9))
    stop = min(index for index, tick in enumerate(fine) if tick >= high * (1 - 1e-9))
    return fine[start : stop + 1]


def _tick(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.4g} %"
    return f"{value:,.4g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.0e}".replace("e-0", "e-")


def number(value: Any, unit: str) -> str:
    """A number with its unit, as HTML text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(str(value))
    if not math.isfinite(value):
        return str(value)
    if unit == "%":
        return f"{100 * value:.1f}&nbsp;%"
    if unit == "dB":
        return f"{value:.1f}&nbsp;dB"
    if unit == "bytes":
        return f"{value / 1e9:.2f}&nbsp;GB"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
