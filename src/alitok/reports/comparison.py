"""A page of several runs: what they were, learned, draw and took."""

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alitok.reports.runs import Part, Run

COLOURS = 8
UNITS = {"psnr": "dB", "codebook_usage": "%", "token_accuracy": "%", "ar_accuracy": "%", "class_agreement": "%"}


def write_page(
    folders: Sequence[str | Path],
    out: Path,
    *,
    data: str | None = None,
    images: int = 8,
    seed: int = 0,
    device: "torch.device | None" = None,
) -> list[str]:
    """Writes the page, whole or not at all.

    Args:
        folders: of the runs, two or more.
        data: data spec of the pictures that are reconstructed; None = that of the first tokenizer's run.
        images: how many pictures, and how many classes are sampled (two samples of each).

    Returns:
        What could not be shown, a sentence each.

    Raises:
        BadInput: a folder without a run, a damaged artifact, unreadable data, or a page that cannot be written.
    """
    from importlib.resources import files
    from string import Template

    import torch

    from alitok.common.files import write_text
    from alitok.reports.page import section
    from alitok.reports.runs import group, group_names, open_runs

    groups = group(open_runs(folders))
    names = group_names(groups)
    place = torch.device("cpu") if device is None else device
    redrawn, notes = _reconstructions(groups, names, data, images, place)
    drawn, more_notes = _samples(groups, names, images, seed, place)
    notes += more_notes
    sections = [
        section("numbers", "Numbers", "Mean and standard deviation over seeds.", _numbers(groups, names)),
        section("cost", "Cost", "", _cost(groups, names)),
        section("differences", "What differs", "Keys that all share are left out.", _differences(groups, names)),
        section("curves", "Curves", "The number after each name is where its line ends.", _curves(groups)),
        section("pictures", "The same pictures, redrawn", "The first seed of each run.", redrawn),
        section("samples", "The same seeds and classes, sampled", "The first seed of each run.", drawn),
        section("notes", "Not shown", "", "".join(f"<p>{escape(note)}</p>" for note in notes)),
    ]
    templates = files("alitok.reports").joinpath("templates")
    report = templates.joinpath("report.html").read_text(encoding="utf-8")
    style = report.partition("<style>")[2].partition("</style>")[0]  # one look for both pages
    count = sum(len(members) for members in groups)
    page = Template(templates.joinpath("compare.html").read_text(encoding="utf-8")).substitute(
        style=style,
        intro=f"{count} runs of {len(groups)} configurations, each with what it was, learned, draws and took.",
        legend="".join(f'<span class="name {_kind(i)}">{escape(name)}</span>' for i, name in enumerate(names)),
        sections="".join(sections),
        command="alitok compare",
    )
    write_text(out, page)
    return notes


def _kind(index: int) -> str:
    """Style of a group: eight colours, then the same dashed."""
    return f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def _table(head: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    """A table that scrolls sideways where the screen is narrow; cells are HTML."""
    body = "".join(
        f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for label, cells in rows
    )
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    head_row = f"<thead><tr><td></td>{columns}</tr></thead>"
    return f'<div class="wide" tabindex="0"><table>{head_row}<tbody>{body}</tbody></table></div>'


def _heads(names: Sequence[str]) -> list[str]:
    return [f'<span class="name {_kind(i)}">{escape(name)}</span>' for i, name in enumerate(names)]


# Numbers and configurations


def _numbers(groups: Sequence[Sequence["Run"]], names: Sequence[str]) -> str:
    from alitok.reports.charts import number
    from alitok.reports.runs import ABSENT, spread

    keys = dict.fromkeys(key for members in groups for run in members for key in run.numbers)

    def cell(members: Sequence["Run"], key: str) -> str:
        values = [run.numbers[key] for run in members if key in run.numbers]
        if not values:
            return f'<span class="absent">{ABSENT}</span>'
        unit = UNITS.get(key.rpartition(": ")[2], "")
        mean, deviation = spread(values)
        if deviation is None:
            return number(mean if isinstance(values[0], float) else values[0], unit)
        return f"{number(mean, unit)} ± {number(deviation, unit)}"

    rows = [(escape(key), [cell(members, key) for members in groups]) for key in keys]
    return _table(_heads(names), rows) if rows else ""


def _cost(groups: Sequence[Sequence["Run"]], names: Sequence[str]) -> str:
    from alitok.reports.page import duration
    from alitok.reports.runs import ABSENT, spent

    rows = []
    for part in dict.fromkeys(name for members in groups for run in members for name in run.parts):
        costs = [[spent(run.parts[part]) for run in members if part in run.parts] for members in groups]
        for label in ("steps", "images", "seconds", "parameters"):
            cells = []
            for members in costs:
                values = [value for one in members if (value := getattr(one, label)) is not None]
                if not values:
                    cells.append(f'<span class="absent">{ABSENT}</span>')
                elif label == "seconds":
                    cells.append(duration(sum(values) / len(values)))
                else:
                    cells.append(" / ".join(f"{value:,}" for value in sorted(set(values))))
            rows.append((f"{escape(part)}: {label}", cells))
    return _table(_heads(names), rows)


def _differences(groups: Sequence[Sequence["Run"]], names: Sequence[str]) -> str:
    from alitok.reports.runs import ABSENT, differences

    tables = []
    for part in dict.fromkeys(name for members in groups for name in members[0].parts):
        holders = [members[0].parts.get(part) for members in groups]
        found = differences(holders)
        for index, members in enumerate(groups):  # the first stands for all, but for its seed
            if "seed_everything" in found and holders[index] is not None:
                found["seed_everything"][index] = ", ".join(str(run.parts[part].seed) for run in members)
        rows = [
            (
                f"<code>{_text(key)}</code>",
                [
                    f'<span class="absent">{ABSENT}</span>' if value is ABSENT else f"<code>{_text(value)}</code>"
                    for value in values
                ],
            )
            for key, values in found.items()
        ]
        if rows:
            tables.append(f"<h3>{escape(part)}</h3>{_table(_heads(names), rows)}")
    return "".join(tables) or "<p>Nothing but the seed.</p>"


def _text(value: Any) -> str:
    """A key or value as HTML that may break after a dot or a slash."""
    text = escape(value if isinstance(value, str) else json.dumps(value, default=str))
    return text.replace(".", ".<wbr>").replace("/", "/<wbr>")


# Curves


def _curves(groups: Sequence[Sequence["Run"]]) -> str:
    """For each part a chart a metric, a line a run; those of a group in one colour."""
    from alitok.reports.charts import Curve, chart
    from alitok.reports.page import METRICS, NOT_LOSSES

    html = []
    for part in dict.fromkeys(name for members in groups for run in members for name in run.parts):
        panels: dict[str, dict[str, Curve]] = {}
        kinds = {}
        for index, members in enumerate(groups):
            for run in members:
                kinds[run.name] = _kind(index)
                for metric, points in run.parts[part].curves.items() if part in run.parts else ():
                    finite = [(step, value) for step, value in points if math.isfinite(value)]
                    if finite:
                        panels.setdefault(metric, {})[run.name] = finite
        charts = {}
        for metric, lines in panels.items():
            split, _, short = metric.rpartition("/")
            title, unit = METRICS.get(short, (short.replace("_", " "), ""))
            title += {"train": ", training", "val": ", held out"}.get(split, "")
            charts[metric] = chart(part, title, unit, lines, short not in NOT_LOSSES, kinds)
        chosen = [f"{split}/{short}" for short in METRICS for split in ("val", "train")]
        main = [metric for metric in chosen if metric in charts]
        rest = sorted(set(charts) - set(main))
        if charts:
            html.append(f'<h3>{escape(part)}</h3><div class="charts">{"".join(charts[m] for m in main)}</div>')
        if rest:
            folded = "".join(charts[metric] for metric in rest)
            html.append(f'<details><summary>{len(rest)} more</summary><div class="charts">{folded}</div></details>')
    return "".join(html)


# Pictures


def _strip(title: str, images: "Tensor", alt: str, columns: int, captions: Sequence[str] = ()) -> str:
    from alitok.reports.page import image_tags

    cells = "".join(f"<span>{escape(caption)}</span>" for caption in captions)
    cells += "".join(image_tags(images.cpu(), (f"{alt}, {i}" for i in range(1, len(images) + 1))))
    return (
        f'<article><h3>{title}</h3><div class="tray" tabindex="0"><div style="--columns:{columns}">{cells}</div>'
        "</div></article>"
    )


def _reconstructions(
    groups: Sequence[Sequence["Run"]], names: Sequence[str], data: str | None, count: int, device: Any
) -> tuple[str, list[str]]:
    """A strip of originals for each size of image, one for each tokenizer; and what could not be shown."""

    from alitok.artifacts.folder import load_tokenizer
    from alitok.data.reading import read_crops
    from alitok.data.sources import open_source
    from alitok.evaluation.reconstruction import psnr

    found, notes = _tokenizers(groups, names)
    if not found:
        return "", notes
    source = data or found[0][2].config.get("data", {}).get("init_args", {}).get("source")
    if source is None:
        return "", [*notes, "No pictures to reconstruct: give --data."]
    originals: dict[int, Tensor] = {}
    strips = []
    for index, name, part in found:
        tokenizer = load_tokenizer(part.artifact, device)
        size = tokenizer.image_size
        if size not in originals:
            pictures = open_source(source, "val", size=size, count=count)
            crops = read_crops(pictures, range(min(count, len(pictures))), size).images
            originals[size] = crops.to(device).float() / 255
            title = f"original <small>{escape(source)}, {size} x {size}</small>"
            strips.append(_strip(title, originals[size], f"original of {size} pixels", len(crops)))
        copies = tokenizer.decode(tokenizer.encode(originals[size])).clamp(0, 1)
        mean = float(psnr(copies, originals[size]).mean())
        title = f'<span class="name {_kind(index)}">{escape(name)}</span> <small>{mean:.1f}&nbsp;dB here</small>'
        strips.append(_strip(title, copies, f"redrawn by {name}", len(copies)))
    return f'<div class="strips">{"".join(strips)}</div>', notes


def _samples(
    groups: Sequence[Sequence["Run"]], names: Sequence[str], classes: int, seed: int, device: Any
) -> tuple[str, list[str]]:
    """A strip of samples for each generator; a run without one takes that of its tokens from among the others."""
    import torch

    from alitok.artifacts.folder import load_generator, load_tokenizer
    from alitok.common.draw import Draw
    from alitok.sampling.images import sample_images
    from alitok.sampling.sets import class_names

    everything = [part for members in groups for run in members for part in run.parts.values() if part.card]
    if all(part.kind == "tokenizer" for part in everything):
        return "", []
    strips, notes = [], []
    for index, members in enumerate(groups):
        own = [part for part in members[0].parts.values() if part.card]
        pair = _pair(own, everything)
        if pair is None:
            notes.append(f"{names[index]}: no generator and tokenizer of the same tokens, so it is not sampled.")
            continue
        generator, tokenizer = (
            load_generator(pair[0].artifact, device),
            load_tokenizer(pair[1].artifact, device),
        )
        titles = class_names(generator)
        labels = list(range(min(classes, len(titles))))
        draw = Draw.chosen(generator.card, seed=seed)
        batches = sample_images(generator, tokenizer, labels * 2, draw)
        images = torch.cat([pictures for _, _, pictures in batches]).clamp(0, 1)
        title = (
            f'<span class="name {_kind(index)}">{escape(names[index])}</span>'
            f" <small>guidance {draw.guidance:g}, seed {seed}</small>"
        )
        strips.append(
            _strip(title, images, f"sample of {names[index]}", len(labels), [titles[label] for label in labels])
        )
    return f'<div class="strips">{"".join(strips)}</div>' if strips else "", notes


def _tokenizers(
    groups: Sequence[Sequence["Run"]], names: Sequence[str]
) -> tuple[list[tuple[int, str, "Part"]], list[str]]:
    """(group, name, part) of the tokenizers in the first run of each group, and which have not finished."""
    found, notes = [], []
    for index, members in enumerate(groups):
        parts = {name: part for name, part in members[0].parts.items() if part.kind == "tokenizer"}
        for name, part in parts.items():
            title = names[index] if len(parts) == 1 else f"{names[index]}, {name}"
            if part.card is None:
                notes.append(
                    f"{title} is not finished: it has no artifact, and its numbers are of its last validation."
                )
            else:
                found.append((index, title, part))
    return found, notes


def _pair(own: Sequence["Part"], everything: Sequence["Part"]) -> tuple["Part", "Part"] | None:
    """Generator and tokenizer (the last stage) that share their tokens, at least one of them of the run itself."""
    generators = [part for part in own if part.kind == "generator"]
    tokenizers = [part for part in own if part.kind == "tokenizer"][::-1]
    candidates = [(g, t) for g in generators for t in tokenizers]
    candidates += [(g, t) for g in generators for t in everything[::-1] if t.kind == "tokenizer"]
    candidates += [(g, t) for t in tokenizers for g in everything if g.kind == "generator"]
    for generator, tokenizer in candidates:
        assert generator.card is not None
        assert tokenizer.card is not None
        if generator.card.get("tokenizer") == tokenizer.card.get("digest"):
            return generator, tokenizer
    return None
