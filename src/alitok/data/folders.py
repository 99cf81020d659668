"""Class folders of image files, with or without splits; ImageNet's own tree."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from alitok.common.errors import BadInput
from alitok.data.ilsvrc import validation_classes
from alitok.data.pictures import IMAGE_ENDINGS, read_picture
from alitok.data.wordnet import readable_names

VALIDATION_FOLDERS = ("val", "validation", "test")
ILSVRC_FOLDERS = ("Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")


class FileSource:
    """Pictures in files, with a class each.

    Attributes:
        classes: names of the class folders, sorted; a label is an index into them.
        class_names: what the classes are called, in the same order.
        labels: (images,) int64.
    """

    def __init__(
        self, folder: Path, paths: list[bytes], labels: list[int], classes: list[str], class_names: list[str]
    ) -> None:
        if not paths:
            raise BadInput(f"Data folder {folder} has no images ({', '.join(IMAGE_ENDINGS)}).")
        # one block of bytes, because a million str objects would be copied into every loader process
        self._paths = b"".join(paths)
        self._ends = np.cumsum([len(path) for path in paths])
        self.folder, self.classes, self.class_names = folder, classes, class_names
        self.labels = np.array(labels, dtype=np.int64)
        self.name = str(folder)
        self.description = f"{len(paths):,} images of {len(classes):,} classes in {folder}"

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The file of image `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._paths[start : self._ends[index]])

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.path(index)
        return read_picture(path, path), int(self.labels[index])


class FolderSource(FileSource):
    """Pictures in class folders (searched to any depth); a label is the index of the class's name in sorted order.

    Args:
        folder: holds one folder per class.
        classes: the class folders of the training split, None = this folder's own.

    Raises:
        BadInput: no class folders, a class without images, or a class that training does not know.
    """

    def __init__(self, folder: Path, classes: list[str] | None = None) -> None:
        own = subfolders(folder)
        if not own:
            raise BadInput(f"Data folder {folder} has no class folders; put one folder of images per class there.")
        known = own if classes is None else classes
        strangers = sorted(set(own) - set(known))
        if strangers:
            raise BadInput(f"{folder} has a class {strangers[0]!r} that the training split does not have.")
        paths: list[bytes] = []
        labels: list[int] = []
        for label, name in enumerate(known):
            files = image_files(folder / name)
            if not files and classes is None:
                raise BadInput(
                    f"Class folder {folder / name} has no images ({', '.join(IMAGE_ENDINGS)}); "
                    "add some or remove the folder."
                )
            paths += files
            labels += [label] * len(files)
        super().__init__(folder, paths, labels, known, readable_names(known, list_places(folder)))


class FlatSource(FileSource):
    """ImageNet's validation images as they come, in one folder; their classes are in a list beside it.

    Args:
        folder: holds the images.
        classes: the class folders of the training split.

    Raises:
        BadInput: as `validation_classes`, or a class that training does not know.
    """

    def __init__(self, folder: Path, classes: list[str]) -> None:
        paths = image_files(folder)
        names = [os.fsdecode(os.path.basename(path)) for path in paths]
        found = validation_classes(names, list_places(folder), folder)
        numbers = {name: number for number, name in enumerate(classes)}
        strangers = sorted(set(found) - set(numbers))
        if strangers:
            raise BadInput(f"{folder} has a class {strangers[0]!r} that the training split does not have.")
        labels = [numbers[name] for name in found]
        super().__init__(folder, paths, labels, classes, readable_names(classes, list_places(folder)))


def list_places(folder: Path) -> list[Path]:
    """Where the lists of a data set may lie: a split's folder and the folders above it, up to Kaggle's top folder."""
    return [folder, *folder.parents[:4]]


def open_folder(root: Path, split: str, split_name: str | None) -> tuple[FileSource, bool]:
    """A split of an image folder, and whether it is the whole split (False: validation must be held out of it).

    Raises:
        BadInput: as `FolderSource` and `FlatSource`; a named split that is not there.
    """
    root = next((root / below for below in ILSVRC_FOLDERS if (root / below).is_dir()), root)
    names = subfolders(root)
    train = root / "train"
    if split_name is not None:
        if split_name not in names:
            raise BadInput(f"{root} has no folder {split_name!r}; its folders are {', '.join(names) or 'none'}.")
        known = subfolders(train) if split == "val" and split_name != "train" else []
        return FolderSource(root / split_name, known or None), True

    with_classes = [name for name in ("train", *VALIDATION_FOLDERS) if name in names and subfolders(root / name)]
    others = set(names) - {"train", *VALIDATION_FOLDERS}
    if "train" not in with_classes and (others or not names or names == ["train"]):
        if not others and names:
            raise BadInput(f"{train} has no class folders; put one folder of images per class there.")
        return FolderSource(root), False  # a class may well be called train or test

    validation = next((name for name in VALIDATION_FOLDERS if name in with_classes), None)
    flat = next((name for name in ("val", "validation") if name not in with_classes and image_files(root / name)), None)
    if split == "train":
        if "train" not in names:
            raise BadInput(f"{root} has {', '.join(names)} but no folder train.")
        return FolderSource(train), validation is not None or flat is not None
    if validation is None and flat is not None:
        return FlatSource(root / flat, subfolders(train)), True
    if validation is None:
        return FolderSource(train), False
    return FolderSource(root / validation, subfolders(train) or None), True


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the folders below, hidden ones left out; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise BadInput(f"Cannot list {folder}: {error.strerror or error}.") from error


def image_files(folder: Path) -> list[bytes]:
    """Image files below a folder, to any depth, in sorted order, as file system bytes."""
    found: list[bytes] = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        found += [
            os.fsencode(os.path.join(parent, name))
            for name in sorted(files)
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
        ]
    return found
