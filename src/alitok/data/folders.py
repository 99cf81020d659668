"""Class folders of image files, with or without splits; ImageNet's own tree."""

import os
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from alitok.common.errors import BadInput
from alitok.data.found import Origin, PassedOver, label_notes
from alitok.data.imagenet import name_notes, readable_names, validation_classes
from alitok.data.listing import Listing, has_pictures, image_files, loose_notes, subfolders
from alitok.data.pictures import IMAGE_ENDINGS, read_picture
from alitok.data.splits import beside, pick, role_of

ILSVRC_FOLDERS = ("Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")


class FileSource:
    """Pictures in files, each with a class.

    Attributes:
        classes: names of the class folders, sorted; a label is an index into them.
        class_names: readable names of the classes, in the same order.
        labels: (images,) int64.
    """

    def __init__(
        self, folder: Path, paths: list[bytes], labels: list[int], classes: list[str], class_names: list[str]
    ) -> None:
        if not paths:
            raise BadInput(f"Data folder {folder} has no images ({', '.join(IMAGE_ENDINGS)}).")
        # one block of bytes, because every loader process would copy a million str objects
        self._paths = b"".join(paths)
        self._ends = np.cumsum([len(path) for path in paths])
        self.folder, self.classes, self.class_names = folder, classes, class_names
        self.labels = np.array(labels, dtype=np.int64)
        self.name = str(folder)
        self.description = f"{len(paths):,} images of {len(classes):,} classes in {folder}"
        self.origin = Origin("class folders", passed_over=tuple(name_notes(class_names)))

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The file of image `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._paths[start : self._ends[index]])

    def class_labels(self) -> np.ndarray:
        """(images,) int64."""
        return self.labels

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.path(index)
        return read_picture(path, path), int(self.labels[index])


class FolderSource(FileSource):
    """Pictures in class folders, searched to any depth.

    Args:
        folder: contains one folder per class.
        classes: the class folders of the training split; None = this folder's own.

    Raises:
        BadInput: there are no class folders, a class has no images, or a class is not in `classes`.
    """

    def __init__(self, folder: Path, classes: list[str] | None = None) -> None:
        own = subfolders(folder)
        if not own:
            raise BadInput(
                f"Data folder {folder} has no class folders; put one folder of images per class there, or one folder"
                " with all images if they have no classes."
            )
        known, present = own if classes is None else classes, set(own)
        strangers = sorted(present - set(known))
        if strangers:
            raise BadInput(f"{folder} has a class {strangers[0]!r} that the training split does not have.")
        listing = Listing()
        labels: list[int] = []
        for label, name in enumerate(known):
            count = listing.add(folder / name) if name in present else 0
            if not count and classes is None:
                raise BadInput(
                    f"Class folder {folder / name} has no images ({', '.join(IMAGE_ENDINGS)}); "
                    "add some or remove the folder."
                )
            labels += [label] * count
        super().__init__(folder, listing.paths, labels, known, readable_names(known, list_places(folder)))
        notes = [*loose_notes(folder), *listing.passed_over(), *label_notes(self.labels, known, classes is None)]
        if len(known) == 1 and (below := subfolders(folder / known[0])):
            why = f"the only one; if {', '.join(below[:3])} below it are the classes, name this folder as the data"
            notes.append(PassedOver(f"class {known[0]}", 1, why))
        self.origin = self.origin.noting(*notes)


class FlatSource(FileSource):
    """ImageNet's validation images in one folder, as published; a list in a folder nearby has their classes.

    Args:
        folder: contains the images.
        classes: the class folders of the training split.

    Raises:
        BadInput: as `validation_classes`, or a class is not in `classes`.
    """

    def __init__(self, folder: Path, classes: list[str]) -> None:
        listing = Listing()
        listing.add(folder)
        paths = listing.paths
        names = [os.fsdecode(os.path.basename(path)) for path in paths]
        found, notes = validation_classes(names, list_places(folder), folder)
        numbers = {name: number for number, name in enumerate(classes)}
        strangers = sorted(set(found) - set(numbers))
        if strangers:
            raise BadInput(f"{folder} has a class {strangers[0]!r} that the training split does not have.")
        labels = [numbers[name] for name in found]
        super().__init__(folder, paths, labels, classes, readable_names(classes, list_places(folder)))
        self.origin = self.origin.noting(*notes, *listing.passed_over(), *label_notes(self.labels, classes, False))


def list_places(folder: Path) -> list[Path]:
    """The folders in which to look for lists: a split's folder and four levels above it, up to Kaggle's top folder."""
    return [folder, *folder.parents[:4]]


def has_class_folders(root: Path) -> bool:
    """Whether there are pictures in class folders: in those of a split, or in at least two folders of `root` itself.

    One is not enough: a folder of pictures next to tables may be illustrations of the data set's page.
    """
    root, _ = _below(root)
    names = subfolders(root)
    splits = [name for name in names if role_of(name) is not None]
    if any(has_pictures(root / name / below) for name in splits for below in subfolders(root / name)):
        return True
    return len(list(islice((name for name in names if has_pictures(root / name)), 2))) == 2


def open_folder(root: Path, split: str, split_name: str | None) -> tuple[FileSource, bool]:
    """A split of an image folder, and whether it is the whole split (False: hold validation images out of it).

    Raises:
        BadInput: as `FolderSource` and `FlatSource`; or there is no split of the given name.
    """
    root, tree = _below(root)
    names = subfolders(root)
    if split_name is not None and split_name not in names:
        raise BadInput(f"{root} has no folder {split_name!r}; its folders are {', '.join(names) or 'none'}.")
    with_classes = [name for name in names if role_of(name) is not None and subfolders(root / name)]
    others = [name for name in names if role_of(name) is None]
    # a class may be called Train: spellings other than train count only if every folder has the name of a split
    train = "train" if "train" in with_classes else None
    if not others:
        train = train or pick(with_classes, "train") or pick(names, "train")
    if train is None and split_name is None and (others or not names):
        source: FileSource = FolderSource(root)
        if taken := [name for name in names if role_of(name) is not None]:
            why = "taken for classes, because no train/ has class folders"
            source.origin = source.origin.noting(PassedOver(f"folders {', '.join(taken)}", len(taken), why))
        return source, False

    validation = pick(with_classes, "val", "test")
    flat = None
    if validation is None or role_of(validation) == "test":
        flat = pick((name for name in names if name not in with_classes and image_files(root / name)), "val")
    chosen = split_name or (train if split == "train" else flat or validation or train)
    if chosen is None:
        raise BadInput(f"{root} has {', '.join(names)} but no folder train.")
    known = subfolders(root / (train or "train")) if split == "val" and chosen != train else []
    if chosen == flat and split_name is None:
        source = FlatSource(root / chosen, known)
    else:
        source = FolderSource(root / chosen, known or None)
    read = flat or validation
    parts = dict.fromkeys(name for name in (train, None if flat else validation, chosen) if name not in (None, flat))
    layout = f"{tree}class folders in {' and '.join(f'{name}/' for name in parts)}"
    notes = loose_notes(root)
    if read is not None and role_of(read) == "test" and split_name is None:
        notes.append(
            PassedOver(f"folder {read}", 1, "taken for validation, because there is no val, validation or valid")
        )
    source.origin = Origin(
        layout + f"; pictures in {flat}/ with a list of their classes" * (flat is not None),
        chosen,
        beside=beside(names, train, read, "folder"),
        passed_over=(*notes, *source.origin.passed_over),
    )
    return source, split_name is not None or read is not None


def _below(root: Path) -> tuple[Path, str]:
    """The folder of the splits, and a description of it if it is not `root` itself."""
    below = next((below for below in ILSVRC_FOLDERS if (root / below).is_dir()), None)
    return (root, "") if below is None else (root / below, f"the ILSVRC tree {below}: ")
