"""The ladder's results: JSON, a Markdown table, a figure, and the rungs' pictures side by side."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alitok.common.files import atomic_file, write_json, write_text
from alitok.reports.provenance import command, machine
from alitok.reports.runs import ABSENT, read_json, spread
from alitok.studies.ladder_settings import LADDER

# key of a row -> head of its column, format, factor
COLUMNS: dict[str, tuple[str, str, float]] = {
    "psnr": ("PSNR (dB)", ".2f", 1),
    "rfid": ("rFID", ".3f", 1),
    "codebook_usage": ("codes in use (%)", ".0f", 100),
    "ar_accuracy": ("accuracy (%)", ".1f", 100),
    "ar_loss": ("nats a token", ".3f", 1),
    "gfid": ("gFID", ".3f", 1),
    "gfid_guided": ("gFID, guided", ".3f", 1),
    "steps": ("steps", ",.0f", 1),
    "seconds": ("seconds", ",.0f", 1),
}
# the same for a row's details: a path of keys in the place of a key
DETAILS: dict[tuple[str, ...], tuple[str, str, float]] = {
    ("image_accuracy",): ("accuracy of image tokens (%)", ".1f", 100),
    ("nats_per_picture",): ("nats a picture", ".1f", 1),
    ("entropy_per_picture",): ("entropy a picture", ".1f", 1),
    ("explained_nats",): ("nats explained", ".1f", 1),
    ("noisy_accuracy",): ("accuracy (%), a tenth of the inputs replaced", ".1f", 100),
    ("reach", "own"): ("own patch (%)", ".1f", 100),
    ("reach", "before"): ("patches before (%)", ".1f", 100),
    ("reach", "after"): ("patches after (%)", ".1f", 100),
    ("last_tenth", "accuracy"): ("accuracy gained in the last tenth (%)", ".2f", 100),
    ("last_tenth", "nats"): ("nats gained in it", ".3f", 1),
    ("gfid_error",): ("error of gFID", ".3f", 1),
    ("gfid_guided_error",): ("of gFID, guided", ".3f", 1),
}
PANELS = ("ar_accuracy", "ar_loss", "gfid", "gfid_guided", "rfid", "psnr")
ROW_KEYS = ("variant", "seed", *COLUMNS)
# a rung's picture -> its caption on the sheet of all rungs
SHEETS = {
    "first-tokens": "Decoded from the first k tokens, the others replaced by the mean code",
    "samples": "Samples: four rows without guidance, four at the best scale",
}


def write_results(out: Path, path: Path, facts: Mapping[str, Any]) -> None:
    """Gather the rows in the ladder's folder into PATH.json, PATH.md, PATH.png and one sheet PATH-NAME.png per picture.

    Args:
        facts: facts about the measures, see `Judge`.
    """
    rows, details = [], {}
    for variant in LADDER:
        for file in sorted(out.glob(f"seed-*/{variant}/row.json")):
            row = read_json(file)
            rows.append({key: row[key] for key in ROW_KEYS})
            details[f"{variant}-{row['seed']}"] = read_json(file.with_name("details.json"))
    content = {"rows": rows, **facts, "command": command(), "machine": machine(), "details": details}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_name(f"{path.name}.json"), content)
    write_text(path.with_name(f"{path.name}.md"), markdown(content, path.name))
    draw(rows, details, path.with_name(f"{path.name}.png"))
    for name, title in SHEETS.items():
        pictures = {
            variant: out / f"seed-{found[0]['seed']}" / variant / f"{name}.png"
            for variant, found in by_variant(rows).items()
        }
        draw_sheet(pictures, title, path.with_name(f"{path.name}-{name}.png"))


def by_variant(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rung -> its rows, in the ladder's order."""
    return {name: found for name in LADDER if (found := [row for row in rows if row["variant"] == name])}


def markdown(content: Mapping[str, Any], name: str) -> str:
    """The two tables of the rungs, with notes on how they were measured."""
    groups = by_variant(content["rows"])
    details = {
        variant: [content["details"][f"{variant}-{row['seed']}"] for row in rows] for variant, rows in groups.items()
    }
    # a rung of an earlier version does not say how it was made
    made = {
        key: list(dict.fromkeys(one.get(key, content[key]) for one in content["details"].values()))
        for key in ("command", "machine")
    }
    extractor, settings = content["extractor"], content["settings"]
    scales = ", ".join(f"{scale:g}" for scale in settings["guidance"])
    notes = [
        "Mean ± standard deviation over seeds. PSNR, rFID, codes in use, accuracy and nats a token are of"
        f" {settings['pictures']:,} held-out pictures; gFID is of {settings['samples']:,} samples against training"
        f" pictures, guided at the best of the scales {scales}, chosen on {settings['tuning_samples']:,} samples of"
        " another seed. Steps and seconds are of training, tokenizer and generator.",
        f"**Not comparable with published numbers**: {'; '.join(content['reasons'])}. All rungs share the features of a"
        f" {extractor['name']}: {extractor['accuracy']:.1%} right on held-out pictures, {extractor['features']}"
        f" features, digest `{extractor['digest'][:12]}`. Held-out pictures against the reference have FID"
        f" {content['fid_real']:.3f}.",
        f"Data: `{settings['data']}`. Commands: {', '.join(f'`{text}`' for text in made['command'])}. Machines:"
        f" {'; '.join(made['machine'])}; {settings['precision']}.",
    ]
    pictures = [f"![{title}]({name}-{sheet}.png)" for sheet, title in SHEETS.items()]
    tables = [
        table(groups, {(key,): column for key, column in COLUMNS.items()}),
        table(details, DETAILS),
        "Entropy a picture: the nats of its tokens for one who knows only how often each code occurs at each position."
        " Nats explained: how many of these class and context save. Own patch: the share of the change in the picture"
        " that stays in a token's own patch if its code is replaced by the mean code. The error of a gFID is the"
        " jackknife's over ten groups of samples. The last tenth: of the generator's training, in validation.",
    ]
    parts = ["# The ladder", *tables, f"![The ladder's numbers by rung]({name}.png)", *pictures, *notes]
    return "\n\n".join(parts) + "\n"


def table(
    groups: Mapping[str, Sequence[Mapping[str, Any]]], columns: Mapping[tuple[str, ...], tuple[str, str, float]]
) -> str:
    """A Markdown table of mean and standard deviation over seeds, a line for each rung."""
    heads = ["rung", "seeds", *(head for head, _, _ in columns.values())]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for variant, rows in groups.items():
        cells = [variant, str(len(rows))]
        for path, (_, form, factor) in columns.items():
            values = [value_at(row, path) for row in rows]
            known = [factor * value for value in values if value is not None]
            if not known:
                cells.append(ABSENT)
                continue
            mean, deviation = spread(known)
            alone = deviation is None or path in (("steps",), ("seconds",))
            cells.append(f"{mean:{form}}" if alone else f"{mean:{form}} ± {deviation:{form}}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def value_at(row: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    """The number at a path of keys; None if a row of an earlier version has none."""
    value: Any = row
    for key in path:
        value = (value or {}).get(key)
    return value


def draw(rows: Sequence[Mapping[str, Any]], details: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw a PNG: one panel per number with a dot per seed, and accuracy by position for the first seeds."""
    from matplotlib.figure import Figure

    groups = by_variant(rows)
    figure = Figure(figsize=(11, 9), layout="constrained")
    grid = figure.add_gridspec(3, 3)
    for place, key in enumerate(PANELS):
        axes = figure.add_subplot(grid[divmod(place, 3)])
        head, _, factor = COLUMNS[key]
        for index, found in enumerate(groups.values()):
            values = [row[key] * factor for row in found]
            axes.plot([index] * len(values), values, "o", markersize=6, alpha=0.8)
            axes.plot([index - 0.25, index + 0.25], [spread(values)[0]] * 2, color="black", linewidth=1)
        axes.set_xticks(range(len(groups)), list(groups), rotation=35, ha="right", fontsize=7)
        axes.set_title(head, fontsize=9)
        axes.tick_params(labelsize=7)
    axes = figure.add_subplot(grid[2, :])
    for variant, found in groups.items():
        shares = details[f"{variant}-{found[0]['seed']}"]["accuracy_by_position"]
        image_tokens = math.isqrt(len(shares)) ** 2  # prefix tokens get the numbers up to 0, so that patches align
        numbers = range(image_tokens - len(shares) + 1, image_tokens + 1)
        axes.plot(numbers, [100 * share for share in shares], label=variant, linewidth=1)
    axes.set_title("accuracy (%) by image token, prefix tokens in front of 1; first seed", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, ncols=3)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def draw_sheet(pictures: Mapping[str, Path], title: str, path: Path) -> None:
    """Draw a PNG of the rungs' pictures side by side, each under its rung's name."""
    from matplotlib.figure import Figure
    from PIL import Image

    rows = -(-len(pictures) // 3)
    figure = Figure(figsize=(12, 3.7 * rows), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(rows, 3, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for axes, (variant, file) in zip(panels, pictures.items(), strict=False):
        axes.imshow(Image.open(file), interpolation="nearest")
        axes.set_title(variant, fontsize=9)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
