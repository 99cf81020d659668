"""Checkpoint files: written whole or not at all, checked before use, read without pickled code."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from alitok.common.errors import BadInput, first_line
from alitok.common.files import atomic_file
from alitok.common.tensors import save_pickled

NAME = "step={step}.ckpt"
_NAME = re.compile(r"step=(\d+)\.ckpt")


class AtomicCheckpointIO(CheckpointIO):
    """Writes a temporary file, flushes it to the disk and moves it to the path. Reads only tensors and plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises BadInput if the disk is full or the folder cannot be written. An older file at the path then stays."""
        with atomic_file(path) as temporary:
            save_pickled(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Raises BadInput if the file cannot be read."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint; tensors are read from the file when they are used.

    Raises:
        BadInput: there is no such file, or it cannot be read.
    """
    if not Path(path).is_file():
        raise BadInput(f"There is no checkpoint {path}.")
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # truncated, not a checkpoint, pickled code, ...: torch has no exception class for these
        raise BadInput(f"Checkpoint {path} cannot be read: {first_line(error)}.") from error


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    found = [(int(match[1]), path) for path in Path(folder).glob("*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def set_aside_after(folder: str | Path, step: int) -> list[Path]:
    """Renames checkpoints of later steps to `NAME.old`, so that a run that goes back continues from its own."""
    later = [path for path in checkpoints(folder) if int(path.stem.removeprefix("step=")) > step]
    return [path.replace(path.with_name(f"{path.name}.old")) for path in later]


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint is undamaged, by the checksums in the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError):
        return False


def leftovers(folder: str | Path) -> Iterator[Path]:
    """Unfinished files of a killed run."""
    return Path(folder).glob(".step=*.ckpt.*")


def newest(folder: str | Path) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint of a folder, and the damaged ones that are newer.

    Raises:
        BadInput: there are checkpoints, and all of them are damaged.
    """
    damaged: list[Path] = []
    for path in checkpoints(folder):
        if is_whole(path):
            return path, damaged
        damaged.append(path)
    if damaged:
        raise BadInput(f"All checkpoints in {folder} are damaged; remove the folder to train from the beginning.")
    return None, []
