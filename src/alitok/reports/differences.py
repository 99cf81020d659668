"""Ideas and their base: means over seeds, and paired differences with a verdict."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alitok.common.errors import BadInput
from alitok.reports.charts import duration
from alitok.reports.comparison import UNITS
from alitok.reports.runs import ABSENT, spread

BASE = "base"
MEANING = (
    "The number after ± is the standard error of the mean. *Higher* and *lower* are decided: the 95 % interval of"
    " Student's t excludes 0. Of twenty measures that do not differ, one is decided by chance alone. \"N seeds"
    ' would do" means that N seeds decide such a difference in four of five trials.'
)
COSTS = ("parameters", "flops_a_step", "seconds")  # listed below the measures, without a verdict
CONFIDENCE = 0.95
POWER = 0.8  # the usual one
MOST_SEEDS = 100


@dataclass(frozen=True)
class Difference:
    """An idea's difference to its base in one measure, paired over seeds.

    Attributes:
        mean: mean of idea minus base, over the seeds that both have.
        error: standard error of the mean; None with one seed.
        above: number of seeds in which the idea is above the base.
        seeds: number of seeds.
        decided: the 95 % interval of Student's t excludes 0.
        needed: seeds that decide such a difference and spread in four of five trials; None if more than 100.
    """

    mean: float
    error: float | None
    above: int
    seeds: int
    decided: bool
    needed: int | None


def difference(base: Sequence[float], idea: Sequence[float]) -> Difference:
    """The paired difference: base[i] and idea[i] share seed, start and order of data.

    Raises:
        BadInput: no pairs.
    """
    if not base or len(base) != len(idea):
        raise BadInput(f"A paired difference needs the same seeds on both sides, not {len(base)} and {len(idea)}.")
    each = [other - own for own, other in zip(base, idea, strict=True)]
    mean, count = statistics.fmean(each), len(each)
    above = sum(value > 0 for value in each)
    if count == 1:
        return Difference(mean, None, above, count, False, None)
    deviation = statistics.stdev(each)
    error = deviation / math.sqrt(count)
    decided = abs(mean) > critical(count) * error
    needed = next((n for n in range(2, MOST_SEEDS + 1) if chance(abs(mean), deviation, n) >= POWER), None)
    return Difference(mean, error, above, count, decided, needed)


def critical(seeds: int) -> float:
    """Student's t with 5 % outside, half on each side, for a mean of this many differences."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, seeds - 1))


def chance(mean: float, deviation: float, seeds: int) -> float:
    """The chance that so many seeds decide a true difference in its direction: the power of Student's test."""
    from scipy.stats import nct

    if deviation == 0:
        return float(mean > 0)
    return float(nct.sf(critical(seeds), seeds - 1, mean / deviation * math.sqrt(seeds)))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a row per measure and a column per name: mean and deviation over seeds, and difference to the base.

    Args:
        rows: `name`, `seed`, and measures; the base's rows come first.
    """

    names = list(dict.fromkeys(row["name"] for row in rows))
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("name", "seed", *COSTS)]
    count = len({row["seed"] for row in rows})
    known = {(row["name"], row["seed"], key): row[key] for row in rows for key in keys if row.get(key) is not None}
    lines = [f"| {count} seeds | {' | '.join(names)} |" if count > 1 else f"| one seed | {' | '.join(names)} |"]
    lines.append(f"|{'---|' * (len(names) + 1)}")
    for key in keys:
        unit, cells = UNITS.get(key, ""), []
        for name in names:
            values = [row[key] for row in rows if row["name"] == name and row.get(key) is not None]
            if not values:
                cells.append(ABSENT)
                continue
            mean, deviation = spread(values)
            cell = said(mean, unit) + (f" ± {said(deviation, unit)}" if deviation is not None else "")
            both = [
                seed for own, seed, measure in known if (own, measure) == (name, key) and (BASE, seed, key) in known
            ]
            if name != BASE and both:
                apart = statistics.fmean(known[name, seed, key] - known[BASE, seed, key] for seed in both)
                cell += f" ({'+' if apart >= 0 else '-'}{said(abs(apart), unit)})"
            cells.append(cell)
        lines.append(f"| {key.replace('_', ' ')} | {' | '.join(cells)} |")
    for label, key in (("parameters", "parameters"), ("FLOPs a step", "flops_a_step"), ("wall time a run", "seconds")):
        found = [[row[key] for row in rows if row["name"] == name and row.get(key) is not None] for name in names]
        if key == "seconds" or any(found):
            lines.append(f"| {label} | {' | '.join(_cost(key, values) for values in found)} |")
    return "\n".join(lines)


def _cost(key: str, values: Sequence[float]) -> str:
    if not values:
        return ABSENT
    mean, deviation = spread(values)
    if key == "seconds":
        return duration(mean) + (f" ± {duration(deviation)}" if deviation else "")
    return f"{mean:,.0f}" if key == "parameters" else f"{mean:.3g}"


def verdict_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a row per idea and measure: the paired difference to the base, and whether it is decided."""

    names = list(dict.fromkeys(row["name"] for row in rows))
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("name", "seed", *COSTS)]
    values = {(row["name"], row["seed"], key): row[key] for row in rows for key in keys if row.get(key) is not None}
    lines = []
    for name in names:
        for key in keys if name != BASE else ():
            seeds = [row["seed"] for row in rows if row["name"] == name]
            seeds = [seed for seed in seeds if {(BASE, seed, key), (name, seed, key)} <= values.keys()]
            if len(seeds) < 2:
                continue
            found = difference([values[BASE, s, key] for s in seeds], [values[name, s, key] for s in seeds])
            unit = UNITS.get(key, "")
            sign = "+" if found.mean >= 0 else "-"
            amount = f"{sign}{said(abs(found.mean), unit)} ± {said(found.error or 0.0, unit)}"
            word = "higher" if found.mean > 0 else "lower"
            if not found.decided:
                more = f"{found.needed} seeds would do" if found.needed else "more than 100 seeds would be needed"
                equal = "both are equal" if not found.error else "the seeds cancel out"
                word = "undecided: " + (equal if found.mean == 0 else more)
            lines.append(f"| {name} | {key.replace('_', ' ')} | {amount} | {found.above} of {found.seeds} | {word} |")
    if not lines:
        return ""
    head = "| idea | measure | idea less base, paired, with its error | seeds above | verdict (95 %) |"
    return "\n".join([head, "|---|---|---|---|---|", *lines])


def collapsed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each run that uses few of its codes: less than a tenth, and less than half of its base's share."""
    key = "codebook_usage"
    base = {row["seed"]: row[key] for row in rows if row["name"] == BASE and row.get(key) is not None}
    return [
        f"- {row['name']}, seed {row['seed']}, uses {said(row[key], '%')} of its codes: **the codes have collapsed**."
        " Such tokens are easy to predict and say little, so ignore its probe."
        for row in rows
        if row["name"] != BASE and row.get(key) is not None and uses_few(row[key], base.get(row["seed"], 1.0))
    ]


def uses_few(share: float, base: float) -> bool:
    """Whether the share of codes in use means that they have collapsed, given the base's share."""
    return share < min(0.1, base / 2)


def said(value: float, unit: str) -> str:
    """A measure as text with four digits; a share in per cent, if that is the unit."""
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.4g}" + f" {unit}" * bool(unit)
