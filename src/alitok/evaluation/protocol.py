"""The measuring protocol: its extractor, and how a set named on the command line is opened."""

from pathlib import Path

import torch

from alitok.common.errors import BadInput
from alitok.data.found import PassedOver, announce
from alitok.data.sources import NoValidation, open_source
from alitok.evaluation.clean_fid import CleanFidExtractor
from alitok.evaluation.extractors import Extractor, open_extractor
from alitok.evaluation.image_sets import SourceImages, holds_images
from alitok.evaluation.reference import TRAINING, UNKNOWN, VALIDATION


def pick_extractor(protocol: str, extractor: str, device: torch.device) -> Extractor:
    """The extractor of a protocol.

    Args:
        protocol: adm, or a mode of clean-fid.
        extractor: a file, or "inception".

    Raises:
        BadInput: the file is missing, or holds another network.
    """
    if protocol == "adm":
        return open_extractor(extractor, device)
    return CleanFidExtractor(protocol, None if extractor == "inception" else extractor, device)


def is_spec(text: str) -> bool:
    """Whether a set is named by a data spec: `shapes`, a folder that is no set of pictures, or `owner/name`."""
    path = Path(text)
    if path.exists():
        return not holds_images(path)
    return text == "shapes" or (text.count("/") == 1 and not path.suffix and not path.is_absolute())


def open_spec(spec: str, split: str, size: int | None, count: int | None = None) -> tuple[SourceImages, str]:
    """The pictures of a split as center crops of `size`, and their `made_of` (see `evaluation.reference`).

    If the data has no validation split these are all its pictures, and `made_of` is unknown.

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
    return SourceImages(source, size), made_of
