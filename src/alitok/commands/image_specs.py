"""Sets of images as they are named on the command line, the extractor that reads them, and the progress bars."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, track

from alitok.common.distributed import rank
from alitok.common.errors import BadInput
from alitok.data.found import PassedOver, announce
from alitok.data.sources import NoValidation, Source, open_source
from alitok.data.transforms import center_crop, to_tensor
from alitok.evaluation.clean_fid import CleanFidExtractor
from alitok.evaluation.extractors import Extractor, open_extractor
from alitok.evaluation.image_sets import SourceImages, holds_images
from alitok.evaluation.reference import TRAINING, UNKNOWN, VALIDATION


def pick_extractor(args: argparse.Namespace, device: torch.device) -> Extractor:
    """The extractor of the protocol.

    Raises:
        BadInput: its file is missing, or is another network's.
    """
    if args.protocol == "adm":
        return open_extractor(args.extractor, device)
    return CleanFidExtractor(args.protocol, None if args.extractor == "inception" else args.extractor, device)


def is_spec(text: str) -> bool:
    """Whether a set is named by a data spec: `shapes`, a folder without pictures directly in it, or `owner/name`."""
    path = Path(text)
    if path.exists():
        return not holds_images(path)
    return text == "shapes" or (text.count("/") == 1 and not path.suffix and not path.is_absolute())


def open_spec(spec: str, split: str, size: int | None, count: int | None = None) -> tuple[SourceImages, str]:
    """The pictures of a split, centre crops of `size`, and what they are (a `made_of` of `evaluation.reference`).

    Where the data has no validation split these are all its pictures, and what they are is not known.

    Raises:
        BadInput: no such data, or no size.
    """
    if size is None:
        raise BadInput(
            f"The pictures of {spec} are cropped to the size of the other set, which is not known: give --size."
        )
    made_of = TRAINING if split == "train" else VALIDATION
    guesses = []
    try:
        source = open_source(spec, "train" if split == "train" else "val", size=size, count=count, val_fraction=0)
    except NoValidation:
        source, made_of = open_source(spec, "train", size=size, count=count, val_fraction=0), UNKNOWN
        guesses = [PassedOver("validation", 1, "all pictures are measured, because there is no split for it")]
    announce(spec, {split: source}, *guesses)
    return SourceImages(source, size, crop), made_of


def read_all(source: Source, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre crops of all pictures of a source, (B, 3, size, size) uint8, and labels (B,)."""
    images = torch.empty(len(source), 3, size, size, dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.int64)
    for index in bar("Pictures")(range(len(source))):
        picture, label = source[index]
        images[index], labels[index] = crop(picture, size), label
    return images, labels


def crop(picture: Any, size: int) -> torch.Tensor:
    """ADM's centre crop, (3, size, size) uint8."""
    return to_tensor(center_crop(picture, size))


def check_writable(path: Path) -> None:
    """Refuses a place where a result cannot be written, before the work that leads to it; writes nothing.

    Raises:
        BadInput: it is a folder, or lies in none that can be written.
    """
    if path.is_dir():
        raise BadInput(f"Cannot write {path}: it is a folder; name a file.")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise BadInput(f"Cannot write {path}: {nearest} is no folder that can be written; name another file.")


def bar(title: str, total: int | None = None) -> Any:
    """A progress bar around what is gone through, on the first process; None = its length is the total."""
    return lambda reader: track(
        reader,
        title,
        total=len(reader) if total is None else total,
        disable=rank() > 0,
        console=Console(stderr=True),
        transient=True,
    )


@contextmanager
def counter(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on the first process; yields what advances it by so many."""
    with Progress(console=Console(stderr=True), disable=rank() > 0) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
