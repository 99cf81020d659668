"""A page that compares runs: numbers, cost, settings, curves, reconstructions and samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alitok.reports.runs import Part, Run

# Mid tones, readable on light and on dark pages.
COLORS = ("#4f7fe0", "#d06a2d", "#2f9e6c", "#b8549e", "#a3921f", "#2e9db8", "#cf4a5d", "#858a95")
UNITS = {"psnr": "dB", "codebook_usage": "%", "token_accuracy": "%", "ar_accuracy": "%", "class_agreement": "%"}

READING = ("image_column", "label_column", "val_fraction", "streaming")  # data settings that decide the pictures

Groups = Sequence[Sequence["Run"]]
Rows = list[tuple[str, list[Any]]]  # label, one cell per group; None = absent


def write_page(
    folders: Sequence[str | Path],
    out: Path,
    *,
    data: str | None = None,
    images: int = 8,
    seed: int = 0,
    device: "torch.device | None" = None,
) -> list[str]:
    """Write the page, whole or not at all.

    Args:
        folders: folders of two or more runs.
        data: data spec of the pictures to reconstruct; None = that of the first tokenizer's run.
        images: number of pictures, and of classes that are sampled (twice each).

    Returns:
        One sentence for each thing that could not be shown.

    Raises:
        BadInput: a folder without a run, a damaged artifact, unreadable data, or a page that cannot be written.
    """
    import torch

    from alitok.reports.page import render
    from alitok.reports.runs import group, group_names, open_runs

    groups = group(open_runs(folders))
    names = group_names(groups)
    place = torch.device("cpu") if device is None else device
    styles = [{"name": name, "color": color(i)[0], "dashed": color(i)[1]} for i, name in enumerate(names)]
    redrawn, notes = _reconstructions(groups, names, styles, data, images, place)
    drawn, more_notes = _samples(groups, names, styles, images, seed, place)
    notes += more_notes
    render(
        "compare.html",
        out,
        groups=styles,
        runs=sum(len(members) for members in groups),
        numbers=_numbers(groups),
        cost=_cost(groups),
        differences=_differences(groups),
        curves=_curves(groups),
        redrawn=redrawn,
        samples=drawn,
        notes=notes,
    )
    return notes


def color(index: int) -> tuple[str, bool]:
    """Color of a group, and whether its lines are dashed: eight colors, then the same ones dashed."""
    return COLORS[index % len(COLORS)], index >= len(COLORS)


def _numbers(groups: Groups) -> Rows:
    from alitok.reports.charts import number
    from alitok.reports.runs import spread

    def cell(members: Sequence["Run"], key: str) -> str | None:
        values = [run.numbers[key] for run in members if key in run.numbers]
        if not values:
            return None
        unit = UNITS.get(key.rpartition(": ")[2], "")
        mean, deviation = spread(values)
        if deviation is None:
            return number(mean if isinstance(values[0], float) else values[0], unit)
        return f"{number(mean, unit)} ± {number(deviation, unit)}"

    keys = dict.fromkeys(key for members in groups for run in members for key in run.numbers)
    return [(key, [cell(members, key) for members in groups]) for key in keys]


def _cost(groups: Groups) -> Rows:
    from alitok.reports.charts import duration
    from alitok.reports.runs import spent

    def cell(members: Sequence["Run"], part: str, label: str) -> str | None:
        values = [getattr(spent(run.parts[part]), label) for run in members if part in run.parts]
        values = [value for value in values if value is not None]
        if not values:
            return None
        if label == "seconds":
            return duration(sum(values) / len(values))
        return " / ".join(f"{value:,}" for value in sorted(set(values)))

    parts = dict.fromkeys(name for members in groups for run in members for name in run.parts)
    labels = ("steps", "images", "seconds", "parameters")
    return [(f"{part}: {label}", [cell(one, part, label) for one in groups]) for part in parts for label in labels]


def _differences(groups: Groups) -> list[tuple[str, Rows]]:
    from alitok.reports.runs import ABSENT, differences

    tables = []
    for part in dict.fromkeys(name for members in groups for name in members[0].parts):
        holders = [members[0].parts.get(part) for members in groups]
        found = differences(holders)
        for index, members in enumerate(groups):  # members differ in their seeds only
            if "seed_everything" in found and holders[index] is not None:
                found["seed_everything"][index] = ", ".join(str(run.parts[part].seed) for run in members)
        rows = [(key, [None if value is ABSENT else value for value in values]) for key, values in found.items()]
        if rows:
            tables.append((part, rows))
    return tables


def _curves(groups: Groups) -> list[dict[str, Any]]:
    """For each part one chart per metric with one line per run; a group has one color."""
    from alitok.reports.charts import METRICS, chart_part
    from alitok.reports.curves import Curve

    found = []
    colors = {run.name: color(index) for index, members in enumerate(groups) for run in members}
    order = [f"{split}/{metric}" for metric in METRICS for split in ("val", "train")]
    for part in dict.fromkeys(name for members in groups for run in members for name in run.parts):
        panels: dict[str, dict[str, Curve]] = {}
        for run in (run for members in groups for run in members if part in run.parts):
            for metric, points in run.parts[part].curves.items():
                panels.setdefault(metric, {})[run.name] = points
        titles = {}
        for metric in panels:
            split, _, short = metric.rpartition("/")
            title, unit = METRICS.get(short, (short.replace("_", " "), ""))
            titles[metric] = title + {"train": ", training", "val": ", held out"}.get(split, ""), unit
        found.append(chart_part(part, panels, titles, order, colors))
    return [part for part in found if part is not None]


def _strip(
    images: "Tensor", alt: str, columns: int, note: str, group: Any = None, captions: Sequence[str] = ()
) -> dict[str, Any]:
    from alitok.reports.page import pictures

    shown = pictures(images.cpu(), (f"{alt}, {i}" for i in range(1, len(images) + 1)))
    return {"group": group, "note": note, "columns": columns, "captions": captions, "images": shown}


def _reconstructions(
    groups: Groups, names: Sequence[str], styles: Sequence[Any], data: str | None, count: int, device: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """Strips of originals per image size and of reconstructions per tokenizer, and notes on what is missing."""
    from alitok.artifacts.folder import load_tokenizer
    from alitok.common.errors import BadInput
    from alitok.data.reading import read_crops
    from alitok.data.sources import open_source
    from alitok.evaluation.reconstruction import psnr

    found, notes = _tokenizers(groups, names)
    if not found:
        return [], notes
    own = found[0][2].config.get("data", {}).get("init_args", {}) if data is None else {}
    how = {key: own[key] for key in READING if own.get(key) is not None} | {"split_name": own.get("val_split")}
    source = data or own.get("source")
    if source is None:
        return [], [*notes, "No pictures to reconstruct: give --data."]
    originals: dict[int, Tensor] = {}
    strips = []
    for index, name, part in found:
        tokenizer = load_tokenizer(part.artifact, device)
        size = tokenizer.image_size
        if size not in originals:
            try:
                pictures = open_source(source, "val", size=size, count=count, **how)
            except BadInput as error:
                return [], [*notes, f"No pictures to reconstruct: {error}"]
            crops = read_crops(pictures, range(min(count, len(pictures))), size).images
            originals[size] = crops.to(device).float() / 255
            note = f"{source}, {size} x {size}"
            strips.append(_strip(originals[size], f"original of {size} pixels", len(crops), note))
        copies = tokenizer.decode(tokenizer.encode(originals[size])).clamp(0, 1)
        mean = float(psnr(copies, originals[size]).mean())
        style = {**styles[index], "name": name}
        strips.append(_strip(copies, f"redrawn by {name}", len(copies), f"{mean:.1f}\xa0dB here", style))
    return strips, notes


def _samples(
    groups: Groups, names: Sequence[str], styles: Sequence[Any], classes: int, seed: int, device: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """Strips of samples, and notes. A run without a generator or tokenizer uses another run's with the same tokens."""
    import torch

    from alitok.artifacts.folder import load_generator, load_tokenizer
    from alitok.common.draw import Draw
    from alitok.sampling.images import sample_images
    from alitok.sampling.sets import class_names

    everything = [part for members in groups for run in members for part in run.parts.values() if part.card]
    if all(part.kind == "tokenizer" for part in everything):
        return [], []
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
        note, captions = f"guidance {draw.guidance:g}, seed {seed}", [titles[label] for label in labels]
        strips.append(_strip(images, f"sample of {names[index]}", len(labels), note, styles[index], captions))
    return strips, notes


def _tokenizers(groups: Groups, names: Sequence[str]) -> tuple[list[tuple[int, str, "Part"]], list[str]]:
    """(group, name, part) of the tokenizers in each group's first run, and notes on the unfinished ones."""
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
    """A generator and a tokenizer (last stage first) with the same tokens; at least one belongs to the run."""
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
