"""Reads rows of parquet files in place, a row group at a time: on the hub without a download, on disk uncopied."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from alitok.common.errors import BadInput, first_line
from alitok.data.columns import check_same, choose_columns, read_labels
from alitok.data.found import Origin
from alitok.data.imagenet import name_notes, readable_names
from alitok.data.pictures import UnreadableImage, read_picture

WINDOW = 4096  # images among which a streamed training order is mixed


class ParquetRows:
    """The rows of some parquet files. Reads the footers at first, and a row group when one of its rows is needed.

    Args:
        files: paths, or addresses for fsspec (hf://...).

    Attributes:
        features: features of each file.
        blocks: (rows,) int64, the row group of each row.
        window: the row groups among which an order is mixed.
        kept: the most row groups in memory.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = list(files)
        with ThreadPoolExecutor(16) as pool:
            footers = list(pool.map(_read_footer, self.files))
        self.features = features_of([footer.schema.to_arrow_schema() for footer in footers])
        self.groups = [(file, group) for file, footer in enumerate(footers) for group in range(footer.num_row_groups)]
        sizes = [footers[file].row_group(group).num_rows for file, group in self.groups]
        self.starts = np.cumsum([0, *sizes])
        self.blocks = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.window = window_blocks(self.blocks)
        self.kept = self.window + 2
        self._forget()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, index: int, columns: list[str]) -> dict[str, Any]:
        """Some columns of a row."""
        if os.getpid() != self._process:  # open files and their locks do not survive a fork
            self._forget()
        block = int(np.searchsorted(self.starts, index, side="right")) - 1
        if block not in self._tables:
            self._tables[block] = self._read(block, columns)
            if len(self._tables) > self.kept:
                file = self.groups[self._tables.popitem(last=False)[0]][0]
                if all(self.groups[other][0] != file for other in self._tables):
                    self._opened.pop(file).close(force=True)  # an open file keeps a descriptor and what it read ahead
        self._tables.move_to_end(block)
        return self._tables[block].slice(index - int(self.starts[block]), 1).to_pylist()[0]

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column of all files.

        Raises:
            BadInput: a file cannot be read, or the files' columns cannot be joined.
        """
        try:
            with ThreadPoolExecutor(16) as pool:
                tables = list(pool.map(lambda file: _open(file).read([name], use_threads=False), self.files))
            return pa.concat_tables(tables, promote_options="permissive").column(name)
        except Exception as error:  # pyarrow, fsspec and their libraries raise dozens of kinds
            raise BadInput(
                f"Cannot read the column {name!r} of {self.files[0]} and the rest: {first_line(error)}."
            ) from error

    def _read(self, block: int, columns: list[str]) -> pa.Table:
        file, group = self.groups[block]
        if file not in self._opened:
            self._opened[file] = _open(self.files[file])
        return self._opened[file].read_row_group(group, columns, use_threads=False)

    def _forget(self) -> None:
        self._process = os.getpid()
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._opened: dict[int, pq.ParquetFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": -1, "_tables": None, "_opened": None}


class StreamedSource:
    """Pictures with labels from `ParquetRows`.

    Rows of one row group are cheap to read together; the training order uses this through `blocks` and `window`.

    Args:
        classes: classes of the training split; None = from the label column.

    Raises:
        BadInput: there is no image or label column, or a choice of several, or a label is unknown.
    """

    def __init__(
        self,
        rows: ParquetRows,
        name: str,
        image_column: str | None = None,
        label_column: str | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.rows, self.name, self.blocks, self.window = rows, name, rows.blocks, rows.window
        features = rows.features[0]
        self.image_column, self.label_column, notes = choose_columns(features, image_column, label_column, name)
        check_same(rows.files, rows.features, self.image_column, self.label_column)
        self.labels: np.ndarray | None = None
        named = getattr(features[self.label_column], "names", None)
        if named:
            self.classes = list(named)  # the files name the classes, so the labels need not be read yet
        else:
            column = rows.column(self.label_column)
            self.classes, self.labels, notes = read_labels(column, features[self.label_column], classes, name, notes)
        self.class_names = readable_names(self.classes, [Path(name)])
        self.origin = Origin(
            "streamed parquet files",
            columns={"image": self.image_column, "label": self.label_column},
            passed_over=(*name_notes(self.class_names), *notes),
        )
        self.description = f"{len(rows):,} images of {len(self.classes):,} classes in {name} (streamed)"

    def __len__(self) -> int:
        return len(self.rows)

    def class_labels(self) -> np.ndarray:
        """(images,) int64; reads the label column of all files if it was not read before."""
        if self.labels is not None:
            return self.labels
        feature = self.rows.features[0][self.label_column]
        return read_labels(self.rows.column(self.label_column), feature, self.classes, self.name)[1]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        where = f"in row {index:,} of {self.name}"
        try:
            row = self.rows.row(index, [self.image_column, self.label_column])
        except Exception as error:  # as in `column`
            reason = first_line(error)
            raise BadInput(f"Cannot read the row group {where}: {reason}; check the connection or the file.") from error
        value = row[self.image_column]
        value = picture_in(value)
        if value is None:
            raise UnreadableImage(f"There is no image {where}; replace or remove the row.")
        label = row[self.label_column] if self.labels is None else int(self.labels[index])
        if label is None or not 0 <= label < len(self.classes):
            raise BadInput(f"The image {where} has the label {label}, not one of {len(self.classes)} classes.")
        return read_picture(value, where), label


def picture_in(value: Any) -> Any:
    """The bytes or the path of a picture in a cell of an image column; None without any."""
    if not isinstance(value, dict):
        return value
    return value["bytes"] if value.get("bytes") is not None else value.get("path")


def window_blocks(blocks: Tensor) -> int:
    """The number of blocks that contain about `WINDOW` images."""
    mean = len(blocks) / (int(blocks.max()) + 1)
    return max(2, round(WINDOW / mean))


def mixed(total: int, blocks: Tensor | None, generator: torch.Generator, window: int | None = None) -> Tensor:
    """A random order of 0 .. total - 1. With `blocks` (total,) it uses only a few blocks at a time.

    The blocks are shuffled, and the images of the block at place r are spread over the places r .. r + window. At any
    time a window of blocks is in use.

    Args:
        window: as `ParquetRows.window`; None = as many blocks as contain about `WINDOW` images.
    """
    if blocks is None:
        return torch.randperm(total, generator=generator)
    ranks = torch.randperm(int(blocks.max()) + 1, generator=generator)
    spread = torch.rand(total, generator=generator, dtype=torch.float64)
    return (ranks[blocks] + (window or window_blocks(blocks)) * spread).argsort()


def features_of(schemas: Sequence[pa.Schema]) -> list[Any]:
    """The `datasets.Features` of each schema; equal schemas share one object."""
    import datasets

    first = datasets.Features.from_arrow_schema(schemas[0])
    return [
        first if schema.equals(schemas[0], check_metadata=True) else datasets.Features.from_arrow_schema(schema)
        for schema in schemas
    ]


def _open(file: str) -> pq.ParquetFile:
    import fsspec

    return pq.ParquetFile(fsspec.open(file, "rb").open(), pre_buffer=True)


def _read_footer(file: str) -> pq.FileMetaData:
    with _open(file) as opened:
        return opened.metadata
