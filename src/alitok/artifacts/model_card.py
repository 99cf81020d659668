"""Makes the model card (README.md) of a published artifact from its `card.json` and its evaluation records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alitok.artifacts.local_paths import without_folders
from alitok.artifacts.records import METRICS, Record, is_number, numbers, protocol, tie
from alitok.common.errors import BadInput

GRID = "samples.png"
TASKS = {"generator": "unconditional-image-generation", "tokenizer": "image-to-image"}
TAGS = {
    "generator": ["image-generation", "autoregressive", "class-conditional"],
    "tokenizer": ["image-tokenizer", "image-reconstruction"],
}

LOAD = {
    "tokenizer": """import alitok

tokenizer = alitok.load_tokenizer("{name}")
ids = tokenizer.encode(images)  # (B, 3, H, W) in [0, 1] -> (B, N)
images = tokenizer.decode(ids)""",
    "generator": """import alitok
import torch

generator = alitok.load_generator("{name}")
tokenizer = alitok.load_tokenizer("{tokenizer}"){where}
ids = alitok.generate(generator, torch.tensor([0, 1]), seed=0)
images = tokenizer.decode(ids)  # (B, 3, H, W) in [0, 1]""",
}


def check_card(card: Record, source: Path) -> None:
    """Raises BadInput if a value of the card is not valid for a model card."""
    names = card.get("class_names")
    if not (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))):
        raise BadInput(f"{source} has class_names {names!r}, and they are a list of names; correct it.")
    for key in ("metrics", "parents"):
        if not isinstance(card.get(key), dict | None):
            raise BadInput(f"{source} has {key} {card[key]!r}, and they are a map of names to values; correct it.")
    for key in ("digest", "tokenizer"):
        if not isinstance(card.get(key), str | None):
            raise BadInput(f"{source} has the {key} {card[key]!r}, and a digest is a text; export the artifact again.")
    for key, value in (card.get("metrics") or {}).items():
        if isinstance(value, float) and not is_number(value):
            raise BadInput(f"{source} has {key} {value!r} among its metrics, and it must be a finite number.")


def model_card(
    name: str,
    card: Record,
    records: Sequence[Record],
    license: str | None,
    tokenizer: str | None = None,
    grid: bool = False,
) -> str:
    """The text of README.md.

    Args:
        name: `owner/name` on the hub.
        card: the artifact's card.
        records: evaluation records.
        license: the hub's name of the license, e.g. "mit"; None if unknown.
        tokenizer: folder or hub name of a generator's tokenizer; None if unknown.
        grid: there is a `GRID` next to README.md.
    """
    from huggingface_hub import EvalResult, ModelCardData

    card, records = without_folders(card), [without_folders(record) for record in records]
    kind, task = card["kind"], TASKS[card["kind"]]
    results = [
        EvalResult(
            task_type=task,
            dataset_type="image",
            dataset_name=str(card.get("data") or "not recorded"),
            metric_type=key.replace("_", "-"),
            metric_name=METRICS[key],
            metric_value=value,
            metric_args=protocol(record),
        )
        for record in records
        for key, value in numbers(record).items()
    ]
    data = ModelCardData(
        library_name="alitok",
        pipeline_tag=task,
        tags=["alitok", *TAGS[kind]],
        license=license,
        model_name=name.partition("/")[2],
        eval_results=results or None,
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {name.partition('/')[2]}", _what(card)]
    if grid:
        parts.append(f"![Pictures of its run]({GRID})")
    where = "" if tokenizer else "  # give the folder or hub name of the tokenizer with the digest below"
    load = LOAD[kind].format(name=name, tokenizer=tokenizer or "OWNER/NAME", where=where)
    parts += ["## Load it", f"It needs the Python package `alitok`.\n\n```python\n{load}\n```"]
    parts += ["## Training", _training(card)]
    if records:
        parts += ["## Numbers", *(_measured(record, card) for record in records)]
    elif card.get("metrics"):
        parts += ["## Numbers", "At the end of training, on the validation split:", _table(card["metrics"])]
    return "\n\n".join(parts) + "\n"


def _what(card: Record) -> str:
    made = "It was made by [alitok](https://arxiv.org/abs/2506.05289)"
    if card["kind"] == "tokenizer":
        words = "An image tokenizer: pictures to token ids and back."
    else:
        words = "An autoregressive generator: it writes the tokens of a picture of a class."
    return f"{words} {made} {card.get('version', '')}".rstrip() + "."


def _training(card: Record) -> str:
    names = card.get("class_names") or []
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    rows = {
        "data": card.get("data"),
        "classes": shown or None,
        "steps": card.get("steps"),
        "images seen": card.get("images_seen"),
        "digest": card.get("digest"),
        "tokenizer (digest)": card.get("tokenizer"),
        "guidance": card.get("guidance"),
        "power of the guidance": card.get("power"),
        "schedule of the guidance": card.get("schedule"),
        "seed": card.get("seed"),
    }
    rows |= {f"parent: {parent}": digest for parent, digest in (card.get("parents") or {}).items()}
    return _table({key: value for key, value in rows.items() if value is not None})


def _measured(record: Record, card: Record) -> str:
    named = {METRICS[key]: value for key, value in numbers(record).items()}
    reasons = record.get("reasons") or []
    words = [] if (untied := tie(record, card)) is None else [untied]
    if not reasons and not words:
        words = ["These numbers may be compared with published ones."]
    if reasons:
        words += ["Do not compare these numbers with published ones:", "", *(f"- {reason}" for reason in reasons)]
    settings = "; ".join(f"{key} {value}" for key, value in protocol(record).items() if value is not None)
    return "\n".join([_table(named), "", f"Protocol of {record['measure']}: {settings}.", "", *words])


def _table(rows: Record) -> str:
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else f"{value:.5g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
