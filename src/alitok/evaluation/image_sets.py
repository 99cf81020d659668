"""Sets of images to be measured, read a batch at a time: an .npz file or a folder of PNG."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alitok.common.errors import BadInput

ARRAY = "arr_0"


@dataclass(frozen=True)
class ImageSet:
    """Where images lie: how many, their side in pixels, and the labels that are known."""

    path: Path
    count: int
    size: int

    def batches(self, batch: int = 100) -> Iterator[Tensor]:
        """uint8 (B, 3, H, W), in order.

        Raises:
            BadInput: an image that cannot be read or has another size than the first.
        """
        yield from (
            _npz_batches(self.path, batch) if self.path.is_file() else _folder_batches(self.path, batch, self.size)
        )


def open_images(path: Path) -> ImageSet:
    """An .npz with `arr_0` (count, H, W, 3) uint8, or a folder of PNG files.

    Raises:
        BadInput: neither, an array of another name, type or shape, or an empty folder.
    """
    if path.is_file():
        count, height, width, _ = _npz_shape(path)
        if height != width:
            raise BadInput(f"{path}: images of {height} x {width} are not square.")
        return ImageSet(path, count, height)
    if not path.is_dir():
        raise BadInput(f"{path} does not exist: give an .npz file or a folder of PNG.")
    files = _png_files(path)
    if not files:
        raise BadInput(f"{path} holds no PNG file.")
    height, width = _read_png(files[0]).shape[-2:]
    if height != width:
        raise BadInput(f"{files[0]}: an image of {height} x {width} is not square.")
    return ImageSet(path, len(files), height)


def array_names(path: Path) -> set[str]:
    """Names of the arrays in an .npz file; raises BadInput where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} is no .npz file.") from error


def _npz_shape(path: Path) -> tuple[int, ...]:
    names = array_names(path)
    if ARRAY not in names:
        raise BadInput(f"{path} has no array {ARRAY!r}, only {', '.join(sorted(names)) or 'nothing'}.")
    with zipfile.ZipFile(path) as archive, archive.open(f"{ARRAY}.npy") as member:
        shape, dtype = _header(member, path)
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or not shape[0]:
        raise BadInput(f"{path}: {ARRAY} must be uint8 (count, height, width, 3), not {dtype} {shape}.")
    return shape


def _header(member: object, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(member)  # type: ignore[arg-type]
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)  # type: ignore[arg-type]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{path}: {ARRAY} is damaged; make or download it again.") from error
    if fortran:
        raise BadInput(f"{path}: {ARRAY} is stored in Fortran order; save it in C order.")
    return shape, dtype


def _npz_batches(path: Path, batch: int) -> Iterator[Tensor]:
    """Straight from the archive, so that 50,000 images need no memory of their own."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{ARRAY}.npy") as member:
        shape, _ = _header(member, path)
        bytes_each = int(np.prod(shape[1:]))
        for start in range(0, shape[0], batch):
            count = min(batch, shape[0] - start)
            try:
                content = member.read(count * bytes_each)
            except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise BadInput(f"{path}: {ARRAY} is damaged; make or download it again.") from error
            if len(content) != count * bytes_each:
                raise BadInput(f"{path}: {ARRAY} ends after {start:,} of {shape[0]:,} images.")
            images = np.frombuffer(content, np.uint8).reshape(count, *shape[1:])
            yield torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def _png_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".png")


def _read_png(file: Path) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    try:
        return decode_image(str(file), ImageReadMode.RGB)
    except RuntimeError as error:
        raise BadInput(f"{file} is no readable PNG.") from error


def _folder_batches(folder: Path, batch: int, size: int) -> Iterator[Tensor]:
    files = _png_files(folder)
    for start in range(0, len(files), batch):
        images = []
        for file in files[start : start + batch]:
            image = _read_png(file)
            if image.shape[-2:] != (size, size):
                raise BadInput(
                    f"{file} has {image.shape[-1]} x {image.shape[-2]} pixels, the first image {size} x {size}."
                )
            images.append(image)
        yield torch.stack(images)
