"""Sets of images to be measured, read in batches: an .npz file, a folder of pictures, the pictures of a data set."""

import hashlib
import os
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from alitok.common import distributed
from alitok.common.errors import BadInput
from alitok.common.files import sha256
from alitok.data.encoded import is_lossless
from alitok.data.pictures import IMAGE_ENDINGS, read_file, read_picture, to_tensor
from alitok.data.reading import read_crops
from alitok.data.sources import Source
from alitok.evaluation.sidecar import sidecar_path

ARRAY, LABELS = "arr_0", "arr_1"
READERS = min(4, os.cpu_count() or 1)

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]  # positions in the set (B,) int64, uint8 images (B, 3, H, W)


class ImageSet(Protocol):
    """Square images of one size in a fixed order.

    `lossless`: nothing read so far was stored with loss (e.g. as JPEG) or resampled; `file`: the single file with all
    images, if any; `labels` (count,) int64, if known; `readers`: how many threads may call `load` at the same time
    (with one, in ascending order).
    """

    name: str
    count: int
    size: int
    lossless: bool
    file: Path | None
    labels: Tensor | None
    readers: int

    def load(self, rows: range) -> Tensor:
        """Images `rows`, uint8 (B, 3, size, size).

        Raises:
            BadInput: an image cannot be read, or has another size.
        """
        ...

    def close(self) -> None: ...


class Reader:
    """This process's batches of a set, read in advance.

    Process b mod P gets batch b whole, so that the networks see the same batches with any number of processes.

    Yields (on iteration):
        positions (B,) int64, images (B, 3, H, W) uint8.

    Raises:
        BadInput: as the set's `load`.
    """

    def __init__(self, images: ImageSet, batch: int = 32) -> None:
        starts = range(0, images.count, batch)
        self.images = images
        self.parts = [
            range(start, min(start + batch, images.count))
            for start in starts[distributed.rank() :: distributed.world_size()]
        ]
        self._lanes = torch.zeros(4, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        self._lanes.zero_()
        readers = self.images.readers
        try:
            for rows, images, lanes in read_ahead((self._task(rows) for rows in self.parts), readers, readers + 1):
                self._lanes += lanes
                yield torch.arange(rows.start, rows.stop), images
        finally:
            self.images.close()

    def lossless(self) -> bool:
        """Whether the set is lossless, once read. A collective."""
        return not distributed.all_sum(torch.tensor(int(not self.images.lossless)))

    def _task(self, rows: range) -> Callable[[], tuple[range, Tensor, Tensor]]:
        def task() -> tuple[range, Tensor, Tensor]:
            images = self.images.load(rows)
            return rows, images, pixel_lanes(rows, images) if self.images.file is None else torch.tensor(0)

        return task

    def digest(self) -> str:
        """SHA-256 of the set's file; else a digest of all pixels and their order, once read. A collective."""
        lanes = distributed.all_sum(self._lanes)
        if self.images.file is not None:
            return sha256(self.images.file)
        return lanes.numpy().astype(">i8").tobytes().hex()


def read_ahead(tasks: Iterable[Callable[[], T]], workers: int, depth: int) -> Iterator[T]:
    """Results of the tasks in their order; at most `depth` are running or waiting to be taken."""
    tasks = iter(tasks)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[T]] = deque(pool.submit(task) for task in islice(tasks, depth))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(task) for task in islice(tasks, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def pixel_lanes(rows: range, images: Tensor) -> Tensor:
    """(4,) int64: the sum, lane by lane and modulo 2^64, of the SHA-256 of each image with its position.

    The sum over all parts does not depend on which process read which part.
    """
    lanes = np.zeros(4, np.int64)
    for row, image in zip(rows, images.numpy(), strict=True):
        digest = hashlib.sha256(f"{row} {image.shape}".encode())
        digest.update(np.ascontiguousarray(image).data)
        lanes += np.frombuffer(digest.digest(), ">i8").astype(np.int64)
    return torch.from_numpy(lanes)


def holds_images(path: Path) -> bool:
    """Whether a path is a file, an empty folder, or a folder with pictures directly in it and no data set beside them.

    A data set often has a picture of its page, or a cover, next to its class folders or tables.
    """
    from alitok.data.folders import has_class_folders
    from alitok.data.tables import is_saved, table_files

    if not path.is_dir():
        return path.is_file()
    if not sidecar_path(path).is_file() and (has_class_folders(path) or is_saved(path) or table_files(path)):
        return False
    entries = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    files = [entry.name.lower() for entry in entries if entry.is_file()]
    return not entries or any(name.endswith(IMAGE_ENDINGS) for name in files)


def open_images(path: Path) -> ImageSet:
    """Open an .npz with `arr_0` (count, H, W, 3) uint8 (and optional labels `arr_1`), or a folder of PNG files.

    A folder may hold pictures of other formats too; one that was stored with loss makes the set not lossless. Files
    that are no pictures are ignored.

    Raises:
        BadInput: neither, an array with a wrong name, type or shape, or an empty folder.
    """
    if path.is_file():
        return NpzImages(path)
    if path.is_dir():
        return FolderImages(path)
    raise BadInput(f"{path} does not exist: give an .npz file, a folder of PNG or a data spec.")


class NpzImages:
    """`arr_0` read directly from the archive, so that 50,000 images need not fit into memory."""

    lossless: bool = True
    readers: int = 1

    def __init__(self, path: Path) -> None:
        self.shape = _npz_shape(path)
        self.count, height, width, _ = self.shape
        _check_square(height, width, path)
        self.size, self.name = height, path.name
        self.file: Path | None = path
        self._path = path
        self.labels = _npz_labels(path, self.count)
        self._member: Any = None

    def load(self, rows: range) -> Tensor:
        bytes_each = int(np.prod(self.shape[1:]))
        try:
            if self._member is None:
                self._archive = zipfile.ZipFile(self._path)
                self._member = self._archive.open(f"{ARRAY}.npy")
                _header(self._member, self._path)
                self._start = self._member.tell()
            if self._member.tell() != self._start + rows.start * bytes_each:  # a seek disables the archive's checksum
                self._member.seek(self._start + rows.start * bytes_each)
            content = self._member.read(len(rows) * bytes_each)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BadInput(f"{self._path}: {ARRAY} is damaged; make or download it again.") from error
        if len(content) != len(rows) * bytes_each:
            raise BadInput(f"{self._path}: {ARRAY} ends before image {rows.stop:,} of {self.count:,}.")
        images = np.frombuffer(content, np.uint8).reshape(len(rows), *self.shape[1:])
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def close(self) -> None:
        if self._member is not None:
            self._member.close()
            self._archive.close()
            self._member = None


class FolderImages:
    """The pictures directly in a folder, in the order of their names."""

    file: Path | None = None
    labels: Tensor | None = None
    readers: int = READERS

    def __init__(self, path: Path) -> None:
        with os.scandir(path) as entries:
            files = sorted(
                Path(entry.path)
                for entry in entries
                if entry.name.lower().endswith(IMAGE_ENDINGS) and not entry.name.startswith(".")
            )
        if not files:
            raise BadInput(f"{path} holds no PNG file: give the folder that the samples were written to.")
        self.files, self.count, self.name = files, len(files), path.name
        self.lossless = True
        height, width = self._read(files[0]).shape[-2:]
        _check_square(height, width, files[0])
        self.size = height

    def load(self, rows: range) -> Tensor:
        images = []
        for file in self.files[rows.start : rows.stop]:
            image = self._read(file)
            if image.shape[-2:] != (self.size, self.size):
                raise BadInput(
                    f"{file} has {image.shape[-1]} x {image.shape[-2]} pixels,"
                    f" the first image {self.size} x {self.size}: give images of one size."
                )
            images.append(image)
        return torch.stack(images)

    def _read(self, file: Path) -> Tensor:
        encoded = read_file(file, str(file))
        if not is_lossless(encoded):
            self.lossless = False
        return to_tensor(read_picture(encoded, str(file)))

    def close(self) -> None: ...


class SourceImages:
    """Pictures of a data set as center crops of `size`."""

    file: Path | None = None
    labels: Tensor | None = None
    lossless: bool = False
    readers: int = READERS

    def __init__(self, source: Source, size: int) -> None:
        self.source, self.size = source, size
        self.count, self.name = len(source), source.name

    def load(self, rows: range) -> Tensor:
        return read_crops(self.source, rows, self.size).images

    def close(self) -> None: ...


def array_names(path: Path) -> set[str]:
    """Names of the arrays in an .npz file; raises BadInput if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} is no .npz file: give one with images ({ARRAY}) or statistics (mu, sigma).") from error


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


def _npz_labels(path: Path, count: int) -> Tensor | None:
    """`arr_1` if it holds an integer class for each image, as ADM's samplers write it; else None."""
    if LABELS not in array_names(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            labels = file[LABELS]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{path}: {LABELS} is damaged; make or download it again.") from error
    fits = labels.shape == (count,) and np.issubdtype(labels.dtype, np.integer)
    return torch.from_numpy(labels.astype(np.int64)) if fits else None


def _check_square(height: int, width: int, path: Path) -> None:
    if height != width:
        raise BadInput(f"{path}: images of {height} x {width} are not square; crop them first.")
