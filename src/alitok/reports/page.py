"""The demo's page: one HTML file that holds its pictures, needs no network and can be sent to anyone."""

import base64
import io
import math
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from einops import rearrange
from torch import Tensor

from alitok.common.files import write_text
from alitok.common.images import to_uint8
from alitok.evaluation.reconstruction import psnr
from alitok.reports.charts import Curve, chart, number

# key of report.json -> label, kind of number, what it means and how to read it
MEANINGS: dict[str, tuple[str, str, str]] = {
    "psnr_stage1": (
        "PSNR, stage 1",
        "dB",
        "How close pictures redrawn by the causal decoder come to the originals; higher is closer, and 6 dB more halve "
        "the error of a pixel.",
    ),
    "psnr_stage2": (
        "PSNR, stage 2",
        "dB",
        "The same for the bidirectional decoder, which reads the same tokens; what it gains over stage 1 comes from "
        "seeing all of them.",
    ),
    "codebook_usage": (
        "Codebook usage",
        "%",
        "Share of the codes that occur in the pictures measured; near 100 % no code is wasted.",
    ),
    "ar_accuracy": (
        "Next token guessed",
        "%",
        "How often the generator's first guess of the next token is right, given the true tokens before it; higher "
        "means more predictable tokens, but 100 % is not the aim, since a picture's start leaves its end open.",
    ),
    "class_agreement": (
        "Class agreement",
        "%",
        "Share of generated pictures that a small classifier, trained on real shapes, takes for the class asked for.",
    ),
    "fid": (
        "FID of samples",
        "",
        "Distance between generated and real pictures; lower is better. It is measured with features of a small "
        "classifier trained on the same shapes, so it cannot be compared with published numbers.",
    ),
    "fid_real": (
        "FID, real against real",
        "",
        "The same distance between two sets of real pictures: the floor that the number above can reach at this count.",
    ),
    "peak_memory_bytes": ("Peak memory", "bytes", "The most memory that the run held at one time."),
}

# metric -> title, unit; in the order of the page, all others folded away behind these
METRICS: dict[str, tuple[str, str]] = {
    "loss": ("Loss", ""),
    "psnr": ("PSNR", "dB"),
    "codebook_usage": ("Codebook usage", "%"),
    "token_accuracy": ("Next token guessed", "%"),
}
NOT_LOSSES = {"psnr", "ssim", "codebook_usage", "codebook_perplexity", "token_accuracy", "token_nats"}


def write_report(
    path: Path,
    *,
    originals: Tensor,
    stage1: Tensor,
    stage2: Tensor,
    samples: dict[str, Tensor],
    forming: list[tuple[str, list[int], Tensor]],
    curves: dict[str, dict[str, Curve]],
    numbers: dict[str, Any],
    seconds: dict[str, float],
    facts: dict[str, str],
    next_steps: list[tuple[str, str]],
) -> None:
    """Writes the page, whole or not at all; a part without content is left out.

    Args:
        originals, stage1, stage2: the same pictures, true and redrawn by either decoder, (B, 3, H, W) in [0, 1].
        samples: class name -> generated pictures (n, 3, H, W).
        forming: (class name, T token counts, (T, 3, H, W)): a picture decoded from its first tokens only.
        curves: stage title -> "train/NAME" or "val/NAME" -> [(step, value), ...].
        numbers: keys of report.json; None where a number was not measured.
        seconds: step -> how long it took.
        facts: what was run, name -> text.
        next_steps: (sentence, command).

    Raises:
        BadInput: a picture holds NaN, or the file cannot be written.
    """
    page = Template(files("alitok.reports").joinpath("templates/report.html").read_text(encoding="utf-8")).substitute(
        headline=_headline(numbers, seconds),
        reconstructions=section(
            "reconstructions",
            "A picture, its tokens, the picture again",
            "Each original beside what is redrawn from its tokens alone: by the causal decoder of stage 1, where a "
            "patch sees only the tokens up to its own, and by the bidirectional decoder of stage 2, which sees all.",
            _reconstructions(originals, stage1, stage2),
        ),
        samples=section(
            "samples",
            "New pictures, by class",
            "Nobody drew these: the generator was given the name of a class and wrote one token after another.",
            "".join(_sample_card(name, images) for name, images in samples.items()),
            "samples",
        ),
        forming=section(
            "forming",
            "A picture forming, token by token",
            "One generated sequence, decoded from its first tokens only. Move the slider, or click a picture.",
            "".join(_forming_card(name, counts, frames) for name, counts, frames in forming),
            "forming",
        ),
        numbers=section(
            "numbers",
            "The numbers, and how to read them",
            "",
            _numbers(numbers),
        ),
        curves=section(
            "curves",
            "How it learned",
            "Training in grey, held-out pictures in blue; the number beside each name is where its line ends.",
            "".join(_curves(title, stage) for title, stage in curves.items()),
        ),
        seconds=section("time", "Where the time went", "", _seconds(seconds)),
        facts=section(
            "facts",
            "What was run",
            "",
            "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items()),
            "facts",
            "dl",
        ),
        next_steps=section(
            "next",
            "What to do next",
            "",
            "".join(
                f'<li><p>{escape(sentence)}</p><div class="command"><pre tabindex="0"><code>{escape(command)}</code>'
                "</pre></div></li>"
                for sentence, command in next_steps
            ),
            "steps",
            "ol",
        ),
    )
    write_text(path, page)


def section(name: str, title: str, lead: str, body: str, style: str = "", tag: str = "div") -> str:
    """A headed part of a page, its body (HTML) in an element of that tag and class; empty where there is no body."""
    if not body:
        return ""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{name}"><h2>{title}</h2>{lead}<{tag} class="{style}">{body}</{tag}></section>'


# Pictures


def image_tags(images: Tensor, alts: Iterable[str]) -> list[str]:
    """One `<img>` each for (B, 3 or 1, H, W) in [0, 1], the PNG inside it."""
    from PIL import Image

    tags = []
    for pixels, alt in zip(to_uint8(images, "round").cpu(), alts, strict=True):
        buffer = io.BytesIO()
        array = rearrange(pixels, "c h w -> h w c").squeeze(-1).numpy()
        Image.fromarray(array).save(buffer, format="PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        height, width = pixels.shape[1:]
        tags.append(f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">')
    return tags


def _reconstructions(originals: Tensor, stage1: Tensor, stage2: Tensor) -> str:
    if len(originals) == 0:
        return ""
    count = range(1, len(originals) + 1)
    originals = originals.float().cpu()
    columns = [image_tags(originals, (f"original {i}" for i in count))]
    for stage, images in (("stage 1", stage1.float().cpu()), ("stage 2", stage2.float().cpu())):
        redrawn = image_tags(images, (f"picture {i} redrawn by {stage}" for i in count))
        difference = (images - originals).abs().mean(dim=1, keepdim=True) * 4
        errors = image_tags(difference, (f"error of {stage} in picture {i}" for i in count))
        values = psnr(images.clamp(0, 1), originals).tolist()
        columns.append(
            [
                f'<span class="flip">{picture}{error.replace("<img", "<img class=error", 1)}</span>'
                f"<figcaption>{stage} <small>{value:.1f}&nbsp;dB</small></figcaption>"
                for picture, error, value in zip(redrawn, errors, values, strict=True)
            ]
        )
    columns[0] = [f"{original}<figcaption>original</figcaption>" for original in columns[0]]
    cards = "".join(
        f"<li>{''.join(f'<figure>{cell}</figure>' for cell in card)}</li>" for card in zip(*columns, strict=True)
    )
    return (
        '<label class="switch"><input type="checkbox" id="errors"> Show the errors, four times as bright</label>'
        f'<ul class="triples">{cards}</ul>'
    )


def _sample_card(name: str, images: Tensor) -> str:
    pictures = "".join(image_tags(images, (f"generated {name}, number {i}" for i in range(1, len(images) + 1))))
    return f'<article><h3>{escape(name)}</h3><div class="tiles">{pictures}</div></article>'


def _forming_card(name: str, counts: list[int], frames: Tensor) -> str:
    total = counts[-1]
    pictures = image_tags(frames, (f"{name} from the first {_tokens(count)}" for count in counts))
    strip = "".join(
        f'<li data-count="{count}">{picture}<span>{count}</span></li>'
        for count, picture in zip(counts, pictures, strict=True)
    )
    # the slider works only with scripts, so it shows only with them; the strip is always there
    return (
        f'<article class="player" data-total="{total}"><h3>{escape(name)}</h3><div class="stage" hidden>'
        '<img class="screen" src="data:," alt=""><div class="controls">'
        f'<div class="ruler" style="--n:{total}"><i></i></div>'
        f"<p><output>{_tokens(total)}</output> of {total}</p>"
        f'<input type="range" min="0" max="{len(counts) - 1}" value="{len(counts) - 1}" '
        f'aria-label="How many tokens of {escape(name)} are drawn"><button type="button">Play</button></div></div>'
        f'<ol class="strip" tabindex="0" aria-label="{escape(name)}, by number of tokens">{strip}</ol></article>'
    )


def _tokens(count: int) -> str:
    return f"{count} token{'s' if count != 1 else ''}"


# Numbers


def _headline(numbers: dict[str, Any], seconds: dict[str, float]) -> str:
    """The few numbers that a reader wants first."""
    tiles = [
        (number(numbers[key], MEANINGS[key][1]), label)
        for key, label in (
            ("psnr_stage2", "closeness of redrawn pictures (PSNR)"),
            ("ar_accuracy", "of next tokens guessed at first try"),
            ("class_agreement", "of samples show the class asked for"),
        )
        if numbers.get(key) is not None
    ]
    if seconds:
        tiles.append((duration(sum(seconds.values())), "for the whole run"))
    return "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for value, label in tiles)


def _numbers(numbers: dict[str, Any]) -> str:
    # "seconds" is a table of its own in report.json, and on the page
    known = [key for key in MEANINGS if key in numbers]
    rows = []
    for key in known + [key for key in numbers if key not in MEANINGS and key != "seconds"]:
        label, unit, meaning = MEANINGS.get(key, (key, "", ""))
        value = '<span class="absent">not measured</span>' if numbers[key] is None else number(numbers[key], unit)
        rows.append(
            f'<tr><th scope="row">{escape(label)}</th><td class="value">{value}</td><td>{escape(meaning)}</td></tr>'
        )
    return f'<table class="numbers"><tbody>{"".join(rows)}</tbody></table>' if rows else ""


def duration(seconds: float) -> str:
    """Seconds as HTML text: in seconds, minutes or hours."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 10:
        return f"{seconds:.1f}&nbsp;s"
    if minutes < 1:
        return f"{rest}&nbsp;s"
    return f"{minutes // 60}&nbsp;h {minutes % 60}&nbsp;min" if minutes >= 60 else f"{minutes}&nbsp;min {rest}&nbsp;s"


def _seconds(seconds: dict[str, float]) -> str:
    if not seconds:
        return ""
    longest = max(*seconds.values(), 1e-9)
    rows = "".join(
        f'<tr><th scope="row">{escape(step)}</th>'
        f'<td class="bar"><i style="width:{100 * value / longest:.1f}%"></i></td>'
        f'<td class="value">{duration(value)}</td></tr>'
        for step, value in seconds.items()
    )
    total = f'<tr><th scope="row">Total</th><td></td><td class="value">{duration(sum(seconds.values()))}</td></tr>'
    return f'<table class="bars"><tbody>{rows}</tbody><tfoot>{total}</tfoot></table>'


# Curves


def _curves(title: str, stage: dict[str, Curve]) -> str:
    """The charts of one stage, training and validation of a metric together; minor metrics folded away."""
    panels: dict[str, dict[str, Curve]] = {}
    for name, points in stage.items():
        points = [(step, value) for step, value in points if math.isfinite(value)]
        split, _, metric = name.rpartition("/")
        if points:
            panels.setdefault(metric, {})[split] = points
    if not panels:
        return ""
    charts = {}
    for metric, lines in panels.items():
        name, unit = METRICS.get(metric, (metric.replace("_", " "), ""))
        if metric == "loss" and "token_accuracy" in panels:  # the cross entropy of a stage that predicts tokens
            unit = "nats per token"
        charts[metric] = chart(title, name, unit, lines, may_be_log=metric not in NOT_LOSSES)
    main = "".join(charts[metric] for metric in METRICS if metric in charts)
    rest = [charts[metric] for metric in sorted(charts) if metric not in METRICS]
    summary = f"{len(rest)} more curve{'s' if len(rest) != 1 else ''}"
    more = f'<details><summary>{summary}</summary><div class="charts">{"".join(rest)}</div></details>'
    return f'<h3>{escape(title)}</h3><div class="charts">{main}</div>{more if rest else ""}'
