"""The league's page: each idea's difference to its base, with its error, as Markdown and as a figure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alitok.common.files import atomic_file, write_text
from alitok.reports.charts import duration
from alitok.reports.comparison import UNITS
from alitok.reports.differences import BASE, Difference, difference, said, uses_few
from alitok.reports.runs import ABSENT

Row = Mapping[str, Any]
BETTER, WORSE, UNDECIDED, COLLAPSED = "better", "worse", "undecided", "codes collapsed"


@dataclass(frozen=True)
class Idea:
    """An idea of the league: its changes to the family's base, and its published and expected effects.

    Attributes:
        files: configuration files, relative to the league's folder; default ../ideas/NAME.yaml.
        published: the effect at the paper's size.
        predicted: the effect that is expected at this size.
        overrides: its --key value; {base} is the folder of the base's run with the same seed, {teacher} that of a
            second classifier of the pictures, which does not measure.
    """

    files: list[str]
    published: str
    predicted: str
    overrides: dict[str, Any] | None = None


@dataclass(frozen=True)
class Family:
    """Ideas with one base.

    Attributes:
        base: configuration files, relative to the league's folder.
        main: the measure by which ideas are compared.
        lower_is_better: whether a lower `main` is better.
        shown: further measures.
        ideas: ideas by name.
        overrides: --key value of base and ideas.
        tokenizer: configuration files of the tokenizer whose tokens generators learn, or decoders decode; trained once.
        tokenizer_overrides: --key value of the tokenizer.
    """

    base: list[str]
    main: str
    lower_is_better: bool
    shown: list[str]
    ideas: dict[str, Idea]
    overrides: dict[str, Any]
    tokenizer: list[str] | None = None
    tokenizer_overrides: dict[str, Any] | None = None


def write_page(families: Mapping[str, Family], rows: Sequence[Row], results: Path, made: Sequence[str] = ()) -> None:
    """Write `results`.md and, if any idea can be compared, `results`.png; each whole or not at all.

    Args:
        made: sentences on how the rows were made.
    """
    parts = ["# League of ideas\n", _INTRODUCTION]
    drawn = {}
    for name, family in families.items():
        own = [row for row in rows if row["family"] == name]
        found = {idea: compared(own, idea, family.main) for idea in family.ideas}
        known = {idea: value for idea, value in found.items() if value is not None}
        words = {idea: verdict(own, idea, value, family.lower_is_better) for idea, value in known.items()}
        parts.append(_table(name, family, own, found, words))
        if known:
            drawn[name] = (family, known, words)
    took = sum(row["seconds"] or 0 for row in rows)
    parts.append(f"{len(rows)} runs, {duration(took)} of training. `make league` trains what is missing.\n")
    parts += [f"{sentence}\n" for sentence in made]
    shown = dict.fromkeys(key for f in families.values() for key in (f.main, *f.shown))
    meanings = [f"| {key.replace('_', ' ')} | {meaning} |" for key in shown if (meaning := _meaning(key))]
    parts.append("\n".join(["| column | meaning |", "|---|---|", *meanings, ""]))
    write_text(results.with_name(f"{results.name}.md"), "\n".join(parts))
    if drawn:
        _draw(drawn, results.with_name(f"{results.name}.png"))


_INTRODUCTION = """Base and idea are trained over the same seeds, so the differences are paired. A cell is idea less
base with the error of the mean. A difference is decided if its 95 % interval leaves out 0; one of twenty is by chance
alone. If an idea's codes collapse, its tokens say little and are easy to predict. No idea was tuned. The sizes are a
laptop's, so what a paper reports at full size stands next to it.
"""


# A measure, S standing for a guidance scale -> its meaning.
_MEANINGS = {
    "psnr": "of reconstructions of held-out pictures",
    "ssim": "of reconstructions of held-out pictures",
    "rfid": "FID of reconstructions to the pictures, by the league's classifier",
    "rfid_mean": "the part of the rFID that comes from the means of the features",
    "rfid_covariance": "the part that comes from their covariances",
    "ids_same_shifted": "share of the ids that stay if the picture moves by one pixel",
    "probe_nats_a_picture": "nats of all tokens of a held-out picture, by a small generator of these tokens",
    "probe_accuracy": "share of a held-out picture's tokens that it guesses right; it rises if the codes collapse",
    "probe_codebook_usage": "share of the codes that occur in its pictures",
    "probe_encoder": "accuracy of a linear classifier on the encoder's features",
    "probe_decoder": "accuracy of a linear classifier on the decoder's features",
    "gfid_S": "FID of samples to pictures; the tokenizer's rFID is a part of it",
    "gfid_S_decoded": "FID of samples to decoded pictures, so without the tokenizer's part",
    "token_nats": "nats of a token of held-out pictures, given the true tokens before it",
    "loss": "the generator's own loss on held-out pictures",
    "noisy_token_accuracy": "share of the tokens guessed right if a tenth of the tokens before them are replaced",
    "class_agreement_S": "share of the samples that the classifier takes for the class asked for",
    "chd_S": "distance of the code histograms of samples and pictures, 0 to 1",
    "images_a_second_S": "samples drawn a second",
}


def _meaning(key: str) -> str | None:
    scale = next((part for part in key.split("_") if part.replace(".", "").isdigit()), None)
    if scale is None:
        return _MEANINGS.get(key)
    known = _MEANINGS.get("_".join("S" if part == scale else part for part in key.split("_")))
    return known and f"{known} (guidance {scale})"


def compared(rows: Sequence[Row], idea: str, measure: str) -> Difference | None:
    """An idea's paired difference to the base in one measure; None without a common seed. Stale rows do not count."""
    fresh = [row for row in rows if not row["stale"]]
    values = {(row["name"], row["seed"]): row[measure] for row in fresh if row.get(measure) is not None}
    seeds = [seed for name, seed in values if name == idea and (BASE, seed) in values]
    if not seeds:
        return None
    return difference([values[BASE, seed] for seed in seeds], [values[idea, seed] for seed in seeds])


def collapsed(rows: Sequence[Row], idea: str) -> bool:
    """Whether an idea's codes have collapsed for some seed: then its tokens say little and are easy to predict."""
    key = "codebook_usage"
    share = {(row["name"], row["seed"]): row[key] for row in rows if row.get(key) is not None and not row["stale"]}
    return any(uses_few(value, share.get((BASE, seed), 1.0)) for (name, seed), value in share.items() if name == idea)


def verdict(rows: Sequence[Row], idea: str, found: Difference, lower_is_better: bool) -> str:
    if collapsed(rows, idea):
        return COLLAPSED
    if not found.decided:
        return UNDECIDED
    return BETTER if (found.mean < 0) == lower_is_better else WORSE


def _table(
    name: str,
    family: Family,
    rows: Sequence[Row],
    found: Mapping[str, Difference | None],
    words: Mapping[str, str],
) -> str:
    order = {BETTER: 0, UNDECIDED: 1, WORSE: 2, COLLAPSED: 3}

    def rank(idea: str) -> tuple[int, float]:
        value = found[idea]
        if value is None:
            return 4, 0.0
        sign = 1 if family.lower_is_better else -1
        return order[words[idea]], sign * value.mean

    ideas = sorted(family.ideas, key=rank)
    columns = [family.main, *family.shown]
    heads = " | ".join(key.replace("_", " ") for key in columns)
    tokens = "" if family.tokenizer is None else f", on the tokens of {_files(family.tokenizer)}"
    lines = [
        f"## {name.capitalize()}\n",
        f"Base: {_files(family.base)}{tokens}.\n",
        f"| idea | {heads} | seeds | a run took | verdict | published | expected here |",
    ]
    lines.append("|" + "---|" * (len(columns) + 6))
    base = [_mean(rows, key) for key in columns]
    counting = [row for row in rows if row["name"] == BASE and not row["stale"] and not row.get("failed")]
    count = len({row["seed"] for row in counting})
    lines.append(f"| base{_mark(rows, BASE)} | {' | '.join(base)} | {count} | {_took(rows, BASE)} | | | |")
    for idea in ideas:
        entry, value = family.ideas[idea], found[idea]
        cells = [_cell(compared(rows, idea, key), key) for key in columns]
        word = words.get(idea, ABSENT)
        seeds = 0 if value is None else value.seeds
        said = [
            f"{idea}{_mark(rows, idea)}",
            *cells,
            str(seeds),
            _took(rows, idea),
            word,
            entry.published,
            entry.predicted,
        ]
        lines.append(f"| {' | '.join(said)} |")
    counts = Counter(words.values())
    collapses = f", {counts[COLLAPSED]} collapsed" if counts[COLLAPSED] else ""
    lines.append(
        f"\n{len(words)} of {len(found)} ideas measured: {counts[BETTER]} better, {counts[WORSE]} worse,"
        f" {counts[UNDECIDED]} undecided{collapses}, by {family.main.replace('_', ' ')}"
        f" ({'lower' if family.lower_is_better else 'higher'} is better).\n"
    )
    return "\n".join(lines)


def _files(files: Sequence[str]) -> str:
    """Configuration files as the reader finds them below experiments/."""
    return " + ".join(f"`{'/'.join(Path(file).parts[-2:])}`" for file in files)


def _mark(rows: Sequence[Row], name: str) -> str:
    """The note on runs that do not count."""
    own = [row for row in rows if row["name"] == name]
    words = {"stale": sum(row["stale"] for row in own), "failed": sum(bool(row.get("failed")) for row in own)}
    said = ", ".join(f"{count} {word}" for word, count in words.items() if count)
    return f" ({said})" if said else ""


def _took(rows: Sequence[Row], name: str) -> str:
    """The mean training time of a run, over the runs that count."""
    seconds = [row["seconds"] for row in rows if row["name"] == name and not row["stale"] and row["seconds"]]
    return duration(sum(seconds) / len(seconds)) if seconds else ABSENT


def _mean(rows: Sequence[Row], key: str) -> str:
    own = [row for row in rows if row["name"] == BASE and not row["stale"]]
    values = [row[key] for row in own if row.get(key) is not None]
    return said(sum(values) / len(values), UNITS.get(key, "")) if values else ABSENT


def _cell(found: Difference | None, key: str) -> str:
    if found is None:
        return ABSENT
    unit = UNITS.get(key, "")
    text = f"{'+' if found.mean >= 0 else '-'}{said(abs(found.mean), unit)}"
    return text if found.error is None else f"{text} ± {said(found.error, unit)}"


def _draw(families: Mapping[str, tuple[Family, Mapping[str, Difference], Mapping[str, str]]], path: Path) -> None:
    from matplotlib.figure import Figure

    heights = [0.6 + 0.28 * len(found) for _, found, _ in families.values()]
    figure = Figure(figsize=(8, sum(heights) + 0.4 * len(heights)), layout="constrained")
    colors = {BETTER: "#2e7d32", WORSE: "#b23a2e", UNDECIDED: "#8a8a8a", COLLAPSED: "#222222"}
    for axes, (name, (family, found, words)) in zip(
        figure.subplots(len(families), squeeze=False, height_ratios=heights)[:, 0], families.items(), strict=True
    ):
        ideas = sorted(found, key=lambda idea: found[idea].mean, reverse=family.lower_is_better)
        for place, idea in enumerate(ideas):
            value = found[idea]
            mark = {"fmt": "x" if words[idea] == COLLAPSED else "o", "color": colors[words[idea]]}
            axes.errorbar(value.mean, place, xerr=value.error or 0.0, markersize=5, capsize=3, **mark)
        axes.axvline(0, color="#444444", linewidth=0.8)
        axes.set_yticks(range(len(ideas)), ideas, fontsize=8)
        axes.set_ylim(-0.6, len(ideas) - 0.4)
        better = "left" if family.lower_is_better else "right"
        axes.set_title(f"{name}: {family.main.replace('_', ' ')}, idea less base ({better} is better)", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
