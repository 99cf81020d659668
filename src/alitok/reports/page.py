"""The demo's page: one HTML file that includes its pictures and needs no network."""

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor

from alitok.common.files import write_text
from alitok.common.images import to_uint8
from alitok.evaluation.reconstruction import psnr
from alitok.reports.charts import BLUE, GRAY, METRICS, chart_part, duration, number
from alitok.reports.curves import Curve

# key of report.json -> label, unit, meaning
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
    "peak_memory_bytes": ("Peak memory", "bytes", "The most memory that the run used at one time."),
}

HEADLINE = {
    "psnr_stage2": "closeness of redrawn pictures (PSNR)",
    "ar_accuracy": "of next tokens guessed at first try",
    "class_agreement": "of samples show the class asked for",
}


def render(template: str, path: Path, **content: Any) -> None:
    """Fill a template of this package and write the page, whole or not at all.

    Raises:
        BadInput: the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    def breakable(value: Any) -> Markup:
        """A key or value, with optional line breaks after dots and slashes."""
        text = str(escape(value if isinstance(value, str) else json.dumps(value, default=str)))
        return Markup(text.replace(".", ".<wbr>").replace("/", "/<wbr>"))

    pages = Environment(loader=PackageLoader("alitok.reports"), autoescape=True, undefined=StrictUndefined)
    pages.filters["breakable"] = breakable
    write_text(path, pages.get_template(template).render(**content))


def write_report(
    path: Path,
    *,
    originals: Tensor,
    stage1: Tensor,
    stage2: Tensor,
    samples: dict[str, Tensor],
    taken: dict[str, list[str]],
    forming: list[tuple[str, list[int], Tensor]],
    curves: dict[str, dict[str, Curve]],
    numbers: dict[str, Any],
    seconds: dict[str, float],
    facts: dict[str, str],
    next_steps: list[tuple[str, str]],
) -> None:
    """Write the page, whole or not at all, without the parts that have no content.

    Args:
        originals, stage1, stage2: the same pictures, true and redrawn by either decoder, (B, 3, H, W) in [0, 1].
        samples: class name -> generated pictures (n, 3, H, W).
        taken: class name -> the classes that a classifier predicts for these pictures, n or more.
        forming: (class name, T token counts, (T, 3, H, W)): a picture decoded from its first tokens only.
        curves: stage title -> "train/NAME" or "val/NAME" -> [(step, value), ...].
        numbers: keys of report.json; None if a number was not measured.
        seconds: step -> its seconds.
        facts: facts about the run, name -> text.
        next_steps: (sentence, command).

    Raises:
        BadInput: a picture holds NaN, or the file cannot be written.
    """
    headline = [(number(numbers[key], MEANINGS[key][1]), text) for key, text in HEADLINE.items() if numbers.get(key)]
    if seconds:
        headline.append((duration(sum(seconds.values())), "for the whole run"))
    longest = max(seconds.values(), default=0) or 1
    parts = (stage_charts(title, stage) for title, stage in curves.items())
    render(
        "report.html",
        path,
        headline=headline,
        triples=triples(originals, stage1, stage2),
        samples=[
            (name, list(zip(pictures(images, _numbered(name, len(images))), taken[name], strict=False)))
            for name, images in samples.items()
        ],
        forming=[
            {
                "name": name,
                "total": counts[-1],
                "frames": list(
                    zip(counts, pictures(frames, (f"{name} from the first {_tokens(k)}" for k in counts)), strict=True)
                ),
            }
            for name, counts, frames in forming
        ],
        numbers=table(numbers),
        curves=[part for part in parts if part is not None],
        seconds=[(step, duration(value), f"{100 * value / longest:.1f}") for step, value in seconds.items()],
        total=duration(sum(seconds.values())),
        facts=facts,
        next_steps=next_steps,
    )


def pictures(images: Tensor, alts: Iterable[str]) -> list[dict[str, Any]]:
    """Pictures (B, 3 or 1, H, W) in [0, 1] as PNG data URLs, for the template.

    Raises:
        BadInput: a picture holds NaN.
    """
    from PIL import Image

    found = []
    for pixels, alt in zip(to_uint8(images, "round").cpu(), alts, strict=True):
        file = io.BytesIO()
        Image.fromarray(rearrange(pixels, "c h w -> h w c").squeeze(-1).numpy()).save(file, format="PNG", optimize=True)
        source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
        height, width = pixels.shape[1:]
        found.append({"src": source, "width": width, "height": height, "alt": alt})
    return found


def triples(originals: Tensor, stage1: Tensor, stage2: Tensor) -> list[tuple[Any, list[dict[str, Any]]]]:
    """(original, [what each stage redrew, with its error]) for each picture."""
    count = range(1, len(originals) + 1)
    originals = originals.float().cpu()
    redrawn = []
    for stage, images in (("stage 1", stage1.float().cpu()), ("stage 2", stage2.float().cpu())):
        difference = (images - originals).abs().mean(dim=1, keepdim=True) * 4
        copies = pictures(images, (f"picture {i} redrawn by {stage}" for i in count))
        errors = pictures(difference, (f"error of {stage} in picture {i}" for i in count))
        values = psnr(images.clamp(0, 1), originals).tolist() if len(originals) else []
        redrawn.append(
            [
                {"stage": stage, "image": image, "error": error, "psnr": number(value, "dB")}
                for image, error, value in zip(copies, errors, values, strict=True)
            ]
        )
    shown = pictures(originals, (f"original {i}" for i in count))
    return [(original, list(pair)) for original, *pair in zip(shown, *redrawn, strict=True)]


def table(numbers: dict[str, Any]) -> list[tuple[str, str | None, str]]:
    """(label, value or None, meaning) of each number except "seconds", which has its own table."""
    known = [key for key in MEANINGS if key in numbers]
    rows = []
    for key in known + [key for key in numbers if key not in MEANINGS and key != "seconds"]:
        label, unit, meaning = MEANINGS.get(key, (key, "", ""))
        rows.append((label, None if numbers[key] is None else number(numbers[key], unit), meaning))
    return rows


def stage_charts(title: str, stage: dict[str, Curve]) -> dict[str, Any] | None:
    """The charts of one stage, training and validation of a metric together."""
    panels: dict[str, dict[str, Curve]] = {}
    for name, points in stage.items():
        split, _, metric = name.rpartition("/")
        panels.setdefault(metric, {})[split] = points
    titles = {metric: METRICS.get(metric, (metric.replace("_", " "), "")) for metric in panels}
    if "loss" in panels and "token_accuracy" in panels:  # the cross entropy of a stage that predicts tokens
        titles["loss"] = (titles["loss"][0], "nats per token")
    colors = {split: (BLUE if split == "val" else GRAY, False) for lines in panels.values() for split in lines}
    ordered = {metric: dict(sorted(lines.items())) for metric, lines in panels.items()}  # validation over training
    return chart_part(title, ordered, titles, list(METRICS), colors)


def _numbered(name: str, count: int) -> list[str]:
    return [f"generated {name}, number {number}" for number in range(1, count + 1)]


def _tokens(count: int) -> str:
    return f"{count} token{'s' if count != 1 else ''}"
