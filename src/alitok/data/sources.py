"""Opening a data spec: drawn shapes, image folders, table files, Hugging Face datasets, all seen as a list."""

import hashlib
import re
from pathlib import Path
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import stream

Split = Literal["train", "val"]


class Source(Protocol):
    """A list of (RGB picture, label) with the names of its classes."""

    name: str
    description: str
    class_names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


class NoValidation(BadInput):
    """There is no validation split and nothing is to be held out."""


class Subset:
    """Some images of a source, under new numbers 0 .. len - 1."""

    def __init__(self, source: Source, indices: Tensor, description: str) -> None:
        self.source, self.indices, self.description = source, indices, description
        self.name, self.class_names = source.name, source.class_names
        blocks = blocks_of(source)
        self.blocks = None if blocks is None else blocks[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.source[int(self.indices[index])]


def open_source(
    spec: str,
    split: Split = "train",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    split_name: str | None = None,
    val_fraction: float = 0.05,
    seed: int = 0,
    size: int = 64,
    count: int | None = None,
    streaming: bool = False,
) -> Source:
    """Opens one split of a data spec.

    Args:
        spec: `shapes`, a folder of class folders, a folder of .parquet / .arrow / .tar files, or `owner/name` of a
            Hugging Face dataset.
        split: "train" or "val". Where there is no validation split, a share of train drawn with `seed` is held out.
        image_column, label_column: for tables, where the types leave a choice.
        split_name: the data set's own name of the split to open; it is then taken whole.
        val_fraction: share of train that is held out; 0 holds nothing out, and "val" is then bad input.
        seed: of the share held out, of a `count`, and of the shapes.
        size: side in pixels at which shapes are drawn; other pictures keep their own.
        count: number of shapes to draw; of other data, at most so many images, drawn with `seed`.
        streaming: read parquet files where they lie, on the hub without a download, in place of a local copy.

    Raises:
        BadInput: nothing there, no classes, no image column, no such split, or no access; in one sentence
            (`NoValidation` where "val" is asked for, there is none and `val_fraction` is 0).
    """
    # imported here because these lead back to this file or to heavy libraries
    from alitok.data.folders import open_folder
    from alitok.data.shapes import Shapes
    from alitok.data.tables import has_tables, open_hub, open_tables

    if split not in ("train", "val"):
        raise BadInput(f"A split is 'train' or 'val', not {split!r}; split_name names one of the data set's own.")
    if count is not None and count < 1:
        raise BadInput(f"The number of images must be at least 1, not {count}.")
    if spec == "shapes":
        return Shapes(split, size, count, seed)

    path = Path(spec).expanduser()
    source: Source
    if path.is_dir() and has_tables(path):
        source, whole = open_tables(path, split, split_name, image_column, label_column, streaming)
    elif streaming and not _is_hub_name(spec):
        raise BadInput(f"{spec} cannot be streamed: only a hub name or a folder of parquet files can.")
    elif path.is_dir():
        source, whole = open_folder(path, split, split_name)
    elif _is_hub_name(spec):
        source, whole = open_hub(spec, split, split_name, image_column, label_column, streaming)
    else:
        problem = "is a file, not a folder" if path.exists() else "does not exist"
        raise BadInput(
            f"Data folder {spec} {problem}; put one folder of images per class there, or name another place with "
            "DATA= (a folder, owner/name on the Hugging Face hub, or shapes)."
        )
    if not whole:
        source = hold_out(source, split, val_fraction, seed)
    return source if count is None else limit(source, count, seed)


def held_out(total: int, fraction: float, seed: int) -> Tensor:
    """Which of `total` items are the validation share: bool (total,), a function of the arguments alone.

    Raises:
        BadInput: the fraction is not in [0, 1), or leaves nothing to train on.
    """
    if not 0 <= fraction < 1:
        raise BadInput(f"The share held out for validation must be in [0, 1), not {fraction}.")
    number = max(1, round(fraction * total)) if fraction > 0 else 0
    if number >= total:
        raise BadInput(f"{total} image(s) are too few to hold out {number} for validation and to train on the rest.")
    mask = torch.zeros(total, dtype=torch.bool)
    mask[torch.randperm(total, generator=stream(seed, "held out"))[:number]] = True
    return mask


def hold_out(source: Source, split: Split, fraction: float, seed: int) -> Source:
    """Splits a source without a validation part in two, and says so in its description."""
    mask = held_out(len(source), fraction, seed)
    number = int(mask.sum())
    if number == 0:
        if split == "val":
            raise NoValidation(
                f"{source.name} has no validation split, and none of train is held out (val_fraction 0)."
            )
        return source
    chosen = mask if split == "val" else ~mask
    part = "the" if split == "val" else "all but the"
    share = f"{number:,} of {len(source):,} images held out for validation ({fraction:.3g} of train, seed {seed})"
    return Subset(source, chosen.nonzero().flatten(), f"{source.description}: {part} {share}")


def limit(source: Source, count: int, seed: int) -> Source:
    """At most `count` images, drawn with the seed so that all classes have a chance, in the source's order."""
    if count >= len(source):
        return source
    chosen = draw_some(len(source), count, seed)
    return Subset(source, chosen, f"{source.description}: {count:,} of {len(source):,} images (seed {seed})")


def draw_some(total: int, count: int, seed: int) -> Tensor:
    """`count` of 0 .. total - 1, (count,) int64 in ascending order, a function of the arguments alone."""
    return torch.randperm(total, generator=stream(seed, "limit"))[:count].sort().values


def blocks_of(source: Source) -> Tensor | None:
    """(images,) int64, which images are read together; None where any order costs the same."""
    return getattr(source, "blocks", None)


def fingerprint(source: Source) -> str:
    """SHA-256 of which images a source holds and in which order, their files relative to the folder; not of pixels.

    The same for a data set that was moved; another when images are added, removed, or sorted into other classes.
    """
    from alitok.data.folders import FileSource
    from alitok.data.shapes import Shapes
    from alitok.data.streaming import StreamedSource

    content = hashlib.sha256(repr((len(source), source.class_names)).encode())
    if isinstance(source, Subset):
        content.update(source.indices.numpy().tobytes())
        content.update(fingerprint(source.source).encode())
    elif isinstance(source, Shapes):
        content.update(repr((source.split, source.size, source.seed)).encode())
    elif isinstance(source, StreamedSource):
        content.update(repr([Path(file).name for file in source.rows.files]).encode())
    elif isinstance(source, FileSource):
        root = len(str(source.folder))
        for index in range(len(source)):
            content.update(source.path(index)[root:].encode(errors="surrogateescape") + b"\0")
    if (labels := getattr(source, "labels", None)) is not None:
        content.update(labels.tobytes())
    return content.hexdigest()


def _is_hub_name(spec: str) -> bool:
    """owner/name, unless it looks like a path: `data/...` and what begins with an existing folder are paths."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", spec):
        return False
    owner = spec.split("/")[0]
    return owner != "data" and not Path(spec).exists() and not Path(owner).is_dir()
