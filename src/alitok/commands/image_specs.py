"""Sets of images as they are named on the command line, the extractor that reads them, and the progress bar."""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from alitok.callbacks.metrics import open_extractor
from alitok.common.distributed import rank
from alitok.common.errors import BadInput
from alitok.data.sources import NoValidation, open_source
from alitok.data.transforms import center_crop, to_tensor
from alitok.evaluation.clean_fid import CleanFidExtractor
from alitok.evaluation.extractors import Extractor
from alitok.evaluation.image_sets import SourceImages, holds_images


def pick_extractor(args: argparse.Namespace, device: torch.device) -> Extractor:
    """The extractor of the protocol."""
    if args.protocol == "adm":
        return open_extractor(args.extractor, device)
    return CleanFidExtractor(args.protocol, None if args.extractor == "inception" else args.extractor, device)


def is_spec(text: str) -> bool:
    """Whether a set is named by a data spec: `shapes`, a folder without pictures directly in it, or `owner/name`."""
    path = Path(text)
    if path.exists():
        return not holds_images(path)
    return text == "shapes" or (text.count("/") == 1 and not path.suffix and not path.is_absolute())


def open_spec(spec: str, split: str, size: int | None, count: int | None = None) -> SourceImages:
    """The pictures of a split, centre crops of `size`; all pictures where the data has no validation split.

    Raises:
        BadInput: no such data, or no size.
    """
    if size is None:
        raise BadInput(
            f"The pictures of {spec} are cropped to the size of the other set, which is not known: give --size."
        )
    try:
        source = open_source(spec, "train" if split == "train" else "val", size=size, count=count, val_fraction=0)
    except NoValidation:
        source = open_source(spec, "train", size=size, count=count, val_fraction=0)
    return SourceImages(source, size, crop)


def crop(picture: Any, size: int) -> torch.Tensor:
    """ADM's centre crop, (3, size, size) uint8."""
    return to_tensor(center_crop(picture, size))


def bar(title: str) -> Any:
    """A progress bar around a reader, on the first process."""
    return lambda reader: track(
        reader, title, total=len(reader), disable=rank() > 0, console=Console(stderr=True), transient=True
    )
