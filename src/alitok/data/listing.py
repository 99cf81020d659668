"""Lists the picture files below a folder: follows links, and counts what it does not list."""

import os
from collections import Counter
from pathlib import Path

from alitok.common.errors import BadInput
from alitok.data.found import PassedOver, ending_notes
from alitok.data.pictures import IMAGE_ENDINGS

Place = tuple[int, int]  # device and inode, which identify a folder under any path


class Listing:
    """Picture files of folders, to any depth, sorted within each folder.

    Attributes:
        paths: paths of the files, as file system bytes.
    """

    def __init__(self) -> None:
        self.paths: list[bytes] = []
        self._endings: Counter[str] = Counter()
        self._hidden = self._dead = self._loops = 0

    def add(self, folder: Path) -> int:
        """Lists a folder; returns the number of pictures below it.

        Raises:
            BadInput: a folder cannot be listed.
        """
        before = len(self.paths)
        logical = {_place(parent) for parent in folder.absolute().parents}
        here = _place(folder)
        if here in logical:
            self._loops += 1
        else:
            self._walk(str(folder), {here, *logical, *(_place(parent) for parent in folder.resolve().parents)})
        return len(self.paths) - before

    def _walk(self, folder: str, above: set[Place]) -> None:
        below: list[str] = []
        for entry in _entries(folder):
            if entry.name.startswith("."):
                self._hidden += 1
            elif _is_folder(entry):
                below.append(entry.path)
            elif entry.name.lower().endswith(IMAGE_ENDINGS):
                self.paths.append(os.fsencode(entry.path))
            elif entry.is_symlink() and not os.path.exists(entry.path):
                self._dead += 1
            else:
                self._endings[os.path.splitext(entry.name)[1].lower()] += 1
        for path in below:
            place = _place(path)
            if place in above:  # a link to a folder above: following it would never end
                self._loops += 1
            else:
                self._walk(path, above | {place})

    def passed_over(self) -> list[PassedOver]:
        """Notes on what was seen but not listed."""
        notes = ending_notes(self._endings, IMAGE_ENDINGS)
        for what, count, why in (
            ("hidden files and folders", self._hidden, "their names begin with a dot"),
            ("links to nothing", self._dead, "what they name is not there"),
            ("links to a folder above", self._loops, "following them would never end"),
        ):
            if count:
                notes.append(PassedOver(what, count, why))
        return notes


def image_files(folder: Path) -> list[bytes]:
    """Image files below a folder, to any depth, in sorted order, as file system bytes. Follows links."""
    listing = Listing()
    listing.add(folder)
    return listing.paths


def subfolders(folder: Path) -> list[str]:
    """Sorted names of a folder's subfolders, without hidden ones; empty if the folder does not exist."""
    if not folder.is_dir():
        return []
    return [entry.name for entry in _entries(str(folder)) if _is_folder(entry) and not entry.name.startswith(".")]


def has_pictures(folder: Path) -> bool:
    """Whether there is a picture at any depth below a folder; stops at the first."""
    pending, seen = [str(folder)], set[Place]()
    while pending:
        path = pending.pop()
        if (place := _place(path)) in seen:
            continue
        seen.add(place)
        for entry in _entries(path):
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                pending.append(entry.path)
            elif entry.name.lower().endswith(IMAGE_ENDINGS):
                return True
    return False


def loose_notes(folder: Path) -> list[PassedOver]:
    """Notes on pictures directly in a folder of class folders, which have no class."""
    names = [entry.name.lower() for entry in _entries(str(folder)) if not _is_folder(entry)]
    count = sum(name.endswith(IMAGE_ENDINGS) and not name.startswith(".") for name in names)
    return [PassedOver(f"pictures directly in {folder}", count, "they lie in no class folder")] if count else []


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f"Cannot list {folder}: {error.strerror or error}.") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _place(path: str | Path) -> Place:
    try:
        status = os.stat(path)
    except OSError as error:
        raise BadInput(f"Cannot list {path}: {error.strerror or error}.") from error
    return status.st_dev, status.st_ino
