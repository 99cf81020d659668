"""Readable names for classes that are called by their WordNet ids (n01440764)."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from alitok.common.errors import BadInput
from alitok.data.found import PassedOver

WORDNET_ID = re.compile(r"n\d{8}")
NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")
# SHA-256 of the 1,000 sorted ids of ILSVRC 2012, joined by line feeds
IMAGENET_CLASSES = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


def readable_names(classes: Sequence[str], places: Sequence[Path]) -> list[str]:
    """A name for each class, all different; the classes themselves where they are no WordNet ids or no name is known.

    The 1,000 classes of ImageNet have torchvision's names, the same in every copy of the data; others the first of
    their names in a file of `NAME_FILES` in one of `places`, whose lines are an id, a space or tab, and names between
    commas. Where two classes share a name the ids are added.

    Args:
        classes: sorted names of class folders.

    Raises:
        BadInput: a file of names that cannot be read.
    """
    if not all(WORDNET_ID.fullmatch(name) for name in classes):
        return list(classes)
    if hashlib.sha256("\n".join(classes).encode()).hexdigest() == IMAGENET_CLASSES:
        return imagenet_names()
    file = next((place / name for place in places for name in NAME_FILES if (place / name).is_file()), None)
    if file is None:
        return list(classes)
    words = _read_names(file)
    names = [words.get(name, name) for name in classes]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} ({key})" for name, key in zip(names, classes, strict=True)]


def name_notes(names: Sequence[str]) -> list[PassedOver]:
    """That some classes go by their WordNet ids, if they do."""
    bare = sum(WORDNET_ID.fullmatch(name) is not None for name in names)
    why = f"called by their WordNet ids, because none of {', '.join(NAME_FILES)} beside the data names them"
    return [PassedOver("names of classes", bare, why)] if bare else []


def imagenet_names() -> list[str]:
    """Names of the 1,000 classes of ImageNet, in the order of their WordNet ids."""
    from torchvision.models import ConvNeXt_Small_Weights

    return list(ConvNeXt_Small_Weights.IMAGENET1K_V1.meta["categories"])


def _read_names(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"Cannot read the class names in {file}: {error}.") from error
    names = {}
    for line in lines:
        key, _, text = line.replace("\t", " ", 1).partition(" ")
        first = text.lstrip(" :").split(",")[0].strip()
        if first:
            names[key] = first
    return names
