"""Opens a data spec as a list of pictures: drawn shapes, image folders, table files, Hugging Face datasets."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alitok.common.errors import BadInput, first_line
from alitok.common.random import stream
from alitok.data.found import Described, PassedOver

Split = Literal["train", "val"]
USUAL_SHARE = 0.05  # of train, held out if there is no validation split


class Source(Described, Protocol):
    """A list of (RGB picture, label), with the names of the classes."""

    name: str
    description: str

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


class NoValidation(BadInput):
    """There is no validation split, and `val_fraction` is 0."""


class Subset:
    """Some images of a source, renumbered 0 .. len - 1.

    Args:
        part: a note on what was set aside.
    """

    def __init__(self, source: Source, indices: Tensor, description: str, part: PassedOver) -> None:
        self.source, self.indices, self.description = source, indices, description
        self.name, self.class_names = source.name, source.class_names
        self.origin = replace(source.origin, parts=(*source.origin.parts, part))
        blocks = blocks_of(source)
        self.blocks = None if blocks is None else blocks[indices]
        self.window = window_of(source)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.source[int(self.indices[index])]

    def class_labels(self) -> np.ndarray:
        return self.source.class_labels()[self.indices.numpy()]


def open_source(
    spec: str,
    split: Split = "train",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    split_name: str | None = None,
    val_fraction: float = USUAL_SHARE,
    seed: int = 0,
    size: int = 64,
    count: int | None = None,
    streaming: bool = False,
) -> Source:
    """Opens one split of a data spec.

    Args:
        spec: `shapes`, a folder of class folders, a folder of .parquet / .arrow / .tar files, or `owner/name` of a
            Hugging Face dataset.
        split: "train" or "val". If there is no validation split, a share of train drawn with `seed` is held out.
        image_column, label_column: columns of a table, if their types leave a choice.
        split_name: the data set's own name of the split to open, which is then read whole.
        val_fraction: share of train to hold out; 0 holds nothing out, and "val" then raises `NoValidation`.
        seed: seed of the held-out share, of the choice of `count` images, and of the shapes.
        size: side of drawn shapes in pixels; other pictures keep their size.
        count: number of shapes to draw; for other data, the most images, drawn with `seed`.
        streaming: read parquet files in place, without a download or a local copy.

    Raises:
        BadInput: there is no such data, no classes, no image column, no such split, or no access.
    """
    # imported here because these import this file or heavy libraries
    from alitok.data.folders import open_folder
    from alitok.data.shapes import Shapes
    from alitok.data.tables import open_hub, open_tables

    if split not in ("train", "val"):
        raise BadInput(f"A split is 'train' or 'val', not {split!r}; split_name names one of the data set's own.")
    if count is not None and count < 1:
        raise BadInput(f"The number of images must be at least 1, not {count}.")
    columns = {"image_column": image_column, "label_column": label_column}
    if spec == "shapes":
        if split_name not in (None, "train", "val"):
            raise BadInput(f"shapes has the splits train and val, no {split_name!r}.")
        shapes = Shapes(split_name or split, size, count, seed)
        shapes.origin = shapes.origin.noting(*_unused(columns, streaming=streaming))
        return shapes

    path, is_folder = _place(spec)
    source: Source
    tables, hidden = _tables_of(path, wanted=streaming or any(columns.values()))
    if tables:
        source, whole = open_tables(path, split, split_name, image_column, label_column, streaming)
    elif streaming and not _is_hub_name(spec):
        raise BadInput(f"{spec} cannot be streamed: only a hub name or a folder of parquet files can.")
    elif is_folder:
        source, whole = open_folder(path, split, split_name)
        source.origin = source.origin.noting(*hidden, *_unused(columns))
    elif _is_hub_name(spec):
        source, whole = open_hub(spec, split, split_name, image_column, label_column, streaming)
    else:
        problem = "is a file, not a folder" if path.exists() else "does not exist"
        raise BadInput(
            f"Data folder {spec} {problem}; put one folder of images per class there, or name another place "
            "with --data, --define.source or make's DATA= (a folder, owner/name on the Hugging Face hub, or shapes)."
        )
    if not whole:
        source = hold_out(source, split, val_fraction, seed)
    return source if count is None else limit(source, count, seed)


def _place(spec: str) -> tuple[Path, bool]:
    """A spec as a path, and whether it is a folder."""
    try:
        path = Path(spec).expanduser()
        return path, path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a name too long, no permission
        raise BadInput(f"Cannot look for the data {spec!r}: {first_line(error)}.") from error


def _unused(columns: Mapping[str, str | None], streaming: bool = False) -> list[PassedOver]:
    """Notes on options of tables that were given for other data."""
    notes = [PassedOver(f"{name} {value}", 1, "only tables have columns") for name, value in columns.items() if value]
    return notes + [PassedOver("streaming", 1, "shapes are drawn, not read")] * streaming


def describe_source(source: Source) -> str:
    """A source's images and what was passed over, in one line for a card."""
    return "; ".join([source.description, *map(str, source.origin.passed_over)])


def _tables_of(path: Path, wanted: bool) -> tuple[bool, list[PassedOver]]:
    """Whether to read a folder as tables; if not, notes on tables and archives next to its class folders.

    Class folders have priority unless tables are `wanted`: an archive is often left next to its unpacked folders.
    """
    from alitok.data.folders import has_class_folders
    from alitok.data.tables import is_saved, table_files

    if not path.is_dir():
        return False, []
    if is_saved(path):
        return True, []
    found = table_files(path)
    if not found or wanted or not has_class_folders(path):
        return bool(found), []
    why = "class folders are read in their place"
    return False, [PassedOver(f"files ending in {ending}", len(files), why) for ending, files in found.items()]


def held_out(total: int, fraction: float, seed: int) -> Tensor:
    """Which of `total` items are the validation share: bool (total,), depending only on the arguments.

    Raises:
        BadInput: the fraction is not in [0, 1), or leaves no training images.
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
    """Splits a source without a validation split in two, and notes this in its description."""
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
    where = chosen.nonzero().flatten()
    subset = Subset(source, where, f"{source.description}: {part} {share}", PassedOver("images", number, share))
    labels = getattr(source, "labels", None)  # a streamed source with class names has not read them
    if split == "train" and labels is not None:
        lost = np.setdiff1d(labels, labels[chosen.numpy()])
        why = f"all of their images are held out for validation: {', '.join(source.class_names[i] for i in lost[:6])}"
        if len(lost):
            subset.origin = subset.origin.noting(PassedOver("classes without a picture to train on", len(lost), why))
    return subset


class HeldOut(NamedTuple):
    """How many images of a data set were held out in training, and how many it had; both 0 if none were held out."""

    number: int
    total: int

    @property
    def share(self) -> float:
        return self.number / max(1, self.total)  # exact: a rounded share could hold out another number


def held_out_in_training(trained_with: str, name: str) -> HeldOut | None:
    """What a training held out of the data set `name`, by the description of its data; None if it names another."""
    place = rf" in {re.escape(name)}(?: \(streamed\))?"
    share = re.search(rf"{place}: (?:all but )?the ([\d,]+) of ([\d,]+) images held out for validation", trained_with)
    if share is not None:
        return HeldOut(*(int(number.replace(",", "")) for number in share.groups()))
    return HeldOut(0, 0) if re.search(rf"{place}(?:[:;]|$)", trained_with) else None


def trained_on(then: HeldOut | None, total: int, number: int) -> str | None:
    """A sentence if some of the `number` of `total` images that are held out now were trained on.

    A file that was added or removed since training changes which images are held out.
    """
    if then is None or then == (number, total):
        return None
    if then.number == 0:
        return "nothing was held out in training: these images were trained on"
    changed = "files were added or removed, and some of these images were trained on"
    before, now = (f"{some:,} of {all_:,} images" for some, all_ in (then, (number, total)))
    return f"in training {before} were held out, now {now} are: {changed}"


def limit(source: Source, count: int, seed: int) -> Source:
    """At most `count` images, drawn at random with the seed, in the source's order."""
    if count >= len(source):
        return source
    chosen = draw_some(len(source), count, seed)
    part = PassedOver("images", len(source) - count, f"{count:,} of {len(source):,} are asked for (seed {seed})")
    return Subset(source, chosen, f"{source.description}: {count:,} of {len(source):,} images (seed {seed})", part)


def draw_some(total: int, count: int, seed: int) -> Tensor:
    """`count` of 0 .. total - 1, (count,) int64 in ascending order, depending only on the arguments."""
    return torch.randperm(total, generator=stream(seed, "limit"))[:count].sort().values


def blocks_of(source: Source) -> Tensor | None:
    """(images,) int64, block of each image: a block's images are read together. None if any order costs the same."""
    return getattr(source, "blocks", None)


def window_of(source: Source) -> int | None:
    """How many blocks an order may use at a time: as many as the source keeps, even if few of their images are used."""
    return getattr(source, "window", None)


def fingerprint(source: Source) -> str:
    """SHA-256 of a source's classes, labels and relative file names, in order, but not of pixels.

    Moving a data set does not change it; adding or removing images, or changing their classes, does.
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
    """Whether a spec is owner/name and not a path: `data/...`, or one that begins with an existing folder."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", spec):
        return False
    owner = spec.split("/")[0]
    return owner != "data" and not Path(spec).exists() and not Path(owner).is_dir()
