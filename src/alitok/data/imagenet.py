"""ImageNet's own layouts: the ILSVRC trees and lists, and the names of its classes."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alitok.common.errors import BadInput
from alitok.data.found import PassedOver

WORDNET_ID = re.compile(r"n\d{8}")
NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")
# SHA-256 of the 1,000 sorted ids of ILSVRC 2012, joined by line feeds
IMAGENET_CLASSES = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


def readable_names(classes: Sequence[str], places: Sequence[Path]) -> list[str]:
    """A unique readable name for each class; the class itself if it is not a WordNet id or has no known name.

    The 1,000 classes of ImageNet get torchvision's names, the same for every copy of the data. Other WordNet ids get
    their first name in a file of `NAME_FILES` in one of `places`. Its lines are an id, a space or tab, and names
    separated by commas. If classes share a name, their ids are added.

    Args:
        classes: sorted names of class folders.

    Raises:
        BadInput: a file of names cannot be read.
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
    """A note if some classes are called by their WordNet ids."""
    bare = sum(WORDNET_ID.fullmatch(name) is not None for name in names)
    why = f"called by their WordNet ids, because none of {', '.join(NAME_FILES)} next to the data names them"
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


SOLUTION = "LOC_val_solution.csv"
TRUTHS = (
    "ILSVRC2012_validation_ground_truth.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "validation_ground_truth.txt",
)
DEVKITS = ("", "devkit/data", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit/data", "devkit", "ILSVRC2012_devkit_t12")


def validation_classes(files: Sequence[str], places: Sequence[Path], where: Path) -> tuple[list[str], list[PassedOver]]:
    """The WordNet id of each validation image, and notes on the list that gives it.

    Two forms are known: Kaggle's `LOC_val_solution.csv` (image name, then its id), and a ground-truth file with a
    line for each image in the order of their numbers. Its lines are WordNet ids, or class numbers from 1. These numbers
    are not in sorted order; `meta.mat` or `map_clsloc.txt` of the devkit, next to the file, maps them to ids.

    Args:
        files: names of the images, in any order.
        places: folders to search, with the devkit folders below them.
        where: the folder of the images, for messages.

    Raises:
        BadInput: there is no list, it is for other images, or class numbers have no such map.
    """
    folders = [place / below for place in places for below in DEVKITS]
    solution = next((folder / SOLUTION for folder in folders if (folder / SOLUTION).is_file()), None)
    if solution is not None:
        known = _read_solution(solution)
        missing = [name for name in files if Path(name).stem not in known]
        if missing:
            raise BadInput(f"{solution} does not name the class of {missing[0]} in {where}.")
        notes = [PassedOver("classes of validation pictures", len(files), f"taken from {solution}")]
        if absent := len(known) - len({Path(name).stem for name in files}):
            notes.append(PassedOver(f"pictures that {solution} names", absent, f"they are not in {where}"))
        return [known[Path(name).stem] for name in files], notes
    truth = next((folder / name for folder in folders for name in TRUTHS if (folder / name).is_file()), None)
    if truth is None:
        raise BadInput(
            f"The images of {where} have no class folders and no list of their classes: put {SOLUTION} (Kaggle), or "
            f"{TRUTHS[1]} (ids), or {TRUTHS[0]} with meta.mat (devkit), next to them, or sort them into one folder per"
            " class."
        )
    classes = _read_truth(truth)
    numbers = [int(found[-1]) if (found := re.findall(r"\d+", Path(name).stem)) else 0 for name in files]
    if sorted(numbers) != list(range(1, len(classes) + 1)):
        raise BadInput(
            f"{truth} has {len(classes):,} lines, but {where} does not hold the images numbered 1 to {len(classes):,} "
            f"({len(files):,} images); put the whole validation set there."
        )
    note = PassedOver("classes of validation pictures", len(files), f"taken from {truth}")
    return [classes[number - 1] for number in numbers], [note]


def _read_solution(file: Path) -> dict[str, str]:
    try:
        rows = list(csv.reader(_lines(file)))
    except csv.Error as error:
        raise BadInput(f"Cannot read {file}: {error}; download it again.") from error
    return {row[0]: row[1].split()[0] for row in rows if len(row) >= 2 and WORDNET_ID.match(row[1])}


def _read_truth(file: Path) -> list[str]:
    """The WordNet id of each line."""
    lines = [line.strip() for line in _lines(file) if line.strip()]
    if lines and all(WORDNET_ID.fullmatch(line) for line in lines):
        return lines
    if not lines or not all(line.isdecimal() for line in lines):
        raise BadInput(f"{file} must have a WordNet id (n01440764), or a number of the devkit, on each line.")
    meanings = _devkit_numbers(file)
    try:
        return [meanings[int(line)] for line in lines]
    except KeyError as error:
        raise BadInput(f"{file} has the number {error}, which the devkit's list of classes does not have.") from error


def _devkit_numbers(truth: Path) -> dict[int, str]:
    """ILSVRC2012_ID -> WordNet id, from meta.mat or map_clsloc.txt next to the ground truth."""
    matlab, text = truth.parent / "meta.mat", truth.parent / "map_clsloc.txt"
    if text.is_file():
        rows = [line.split() for line in _lines(text)]
        return {int(row[1]): row[0] for row in rows if len(row) >= 2 and row[1].isdecimal()}
    if matlab.is_file():
        from scipy.io import loadmat

        try:
            synsets: Any = loadmat(matlab, squeeze_me=True)["synsets"]
            return {
                int(number): str(key) for number, key in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
            }
        except Exception as error:  # scipy's reader raises many kinds on damaged files
            raise BadInput(f"Cannot read the devkit's list of classes {matlab}: {error}.") from error
    raise BadInput(
        f"{truth} holds numbers in the devkit's own order, which is not the sorted one; put meta.mat or map_clsloc.txt "
        f"of the devkit next to it, or {SOLUTION} (Kaggle) instead."
    )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"Cannot read {file}: {error}.") from error
