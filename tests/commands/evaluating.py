"""`alitok evaluate` on small sets of shapes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alitok.cli import run
from alitok.data.shapes import Shapes


def shapes(split: str, count: int, size: int = 32) -> Any:
    return np.stack([np.asarray(image) for image, _ in Shapes(split, size, count)])


def save_pngs(folder: Path, images: Any) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return folder


def evaluate(sets: Path, *words: object, extractor: str = "classifier") -> dict[str, Any]:
    record = sets / "record.json"
    record.unlink(missing_ok=True)
    run([str(word) for word in ["evaluate", *words, "--json", record, "--extractor", sets / extractor]])
    return json.loads(record.read_text())


def against(sets: Path, samples: str, reference: str, *more: object) -> dict[str, Any]:
    return evaluate(sets, sets / samples, "--reference", sets / reference, *more)
