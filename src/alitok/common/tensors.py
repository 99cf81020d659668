"""Writes files of tensors; a failed write raises OSError, as for any other file."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(state), path, metadata={"format": "pt"})
    except SafetensorError as error:  # its message contains the system's error number
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def save_pickled(content: Any, path: Path) -> None:
    """Writes a file of `torch.save`, and waits until it is on the disk."""
    with open(path, "wb") as file:
        watched = _Watched(file)
        try:
            torch.save(content, watched)  # type: ignore[arg-type]
        except RuntimeError as error:  # torch's writer hides the file's error
            raise (watched.error or error) from error
        file.flush()
        os.fsync(file.fileno())


class _Watched:
    """A file that remembers the error of a write."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()
