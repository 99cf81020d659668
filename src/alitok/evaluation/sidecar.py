"""How a set of samples was made: the JSON that `alitok sample` writes next to them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alitok.common.errors import BadInput

SIDECAR = "samples.json"
# Key -> what its value must be, in words and as a test; every value except the count may be null.
NUMBER = ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool))
TEXT = ("a text", lambda value: isinstance(value, str))
NAME_OR_BLOCK = (
    "a text or a class block",
    lambda value: isinstance(value, str) or (isinstance(value, dict) and "class_path" in value),
)
WHOLE = ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))
NAMED = (
    "a map with name and digest",
    lambda value: isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("name", "digest")),
)
CLASSES = (
    '"cycling" or a list of class numbers',
    lambda value: value == "cycling" or (isinstance(value, list) and all(WHOLE[1](item) for item in value)),
)
NAMES = ("a list of names", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value))
QUANTIZATION = ('"rounded" or "truncated"', lambda value: value in ("rounded", "truncated"))
KEYS: dict[str, tuple[str, Any]] = {
    "count": WHOLE,
    "generator": NAMED,
    "tokenizer": NAMED,
    "guidance": NUMBER,
    "power": NUMBER,
    "schedule": NAME_OR_BLOCK,
    "temperature": NUMBER,
    "seed": WHOLE,
    "keep": WHOLE,
    "classes": CLASSES,
    "num_classes": WHOLE,
    "class_names": NAMES,
    "quantisation": QUANTIZATION,
    "image_size": WHOLE,
    "alitok": TEXT,
}
# Keys that an evaluation record repeats.
TOLD = (
    "generator",
    "tokenizer",
    "guidance",
    "power",
    "schedule",
    "temperature",
    "seed",
    "keep",
    "quantisation",
    "alitok",
)


def sidecar_path(samples: Path) -> Path:
    """`samples.json` next to `samples.npz`, or inside a folder of PNG."""
    return samples / SIDECAR if samples.is_dir() else samples.with_suffix(".json")


def read_sidecar(samples: Path, count: int, size: int) -> dict[str, Any]:
    """The value of every key of `KEYS`, None if it is unknown; all None if there is no file.

    Raises:
        BadInput: the file is no JSON, has a value of another kind, or describes another set.
    """
    path = sidecar_path(samples)
    if not path.is_file():
        return dict.fromkeys(KEYS)
    advice = "remove it, or draw the samples again"
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} should record how {samples} was made but is no readable JSON: {advice}.") from error
    if not isinstance(content, dict) or content.get("count") is None:
        raise BadInput(f"{path} should record how {samples} was made but has no count: {advice}.")
    known = {key: content.get(key) for key in KEYS}
    for key, (words, fits) in KEYS.items():
        if known[key] is not None and not fits(known[key]):
            raise BadInput(f"{path}: {key} should be {words}, not {json.dumps(known[key])[:60]}: {advice}.")
    for key, found, words in (("count", count, "images"), ("image_size", size, "pixels")):
        if known[key] is not None and known[key] != found:
            raise BadInput(f"{path} describes {known[key]:,} {words}, but {samples} has {found:,}: {advice}.")
    if isinstance(known["classes"], list) and len(known["classes"]) != count:
        raise BadInput(f"{path} has the classes of {len(known['classes']):,} of {count:,} images: {advice}.")
    return known


def sidecar_labels(known: dict[str, Any], count: int) -> Tensor | None:
    """The class of each image (count,) int64; None if unknown."""
    classes, total = known["classes"], known["num_classes"]
    if classes == "cycling":
        return None if not total else torch.arange(count) % total
    return None if classes is None else torch.tensor(classes, dtype=torch.int64)
