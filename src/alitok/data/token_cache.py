"""The token cache: an Arrow dataset of ids, views x N (x S) for each image, and its metadata."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from alitok.common.errors import BadInput, first_line
from alitok.common.files import write_json
from alitok.data.local import load_files

METADATA_FILE = "alitok.json"


def id_type(codebook_size: int) -> type[np.unsignedinteger[Any]]:
    """The smallest unsigned integer type for ids below `codebook_size`."""
    return np.uint8 if codebook_size <= 2**8 else np.uint16 if codebook_size <= 2**16 else np.uint32


def write_metadata(
    folder: Path,
    files: Sequence[str],
    *,
    rows: int,
    codebook_size: int,
    class_names: list[str],
    metadata: Mapping[str, Any],
) -> None:
    """Writes the metadata that makes Arrow files in `folder` a cache: the files of `datasets`, and `METADATA_FILE`.

    Args:
        files: names of the Arrow files, in order.
        metadata: `digest` of the tokenizer, `recipe` of the crops, and any other entries.

    Raises:
        BadInput: the folder cannot be written.
    """
    import datasets

    with pa.memory_map(str(folder / files[0])) as file, pa.ipc.open_stream(file) as stream:
        features = datasets.Features.from_arrow_schema(stream.schema)
        kind = stream.schema.field("tokens").type
        first = stream.read_next_batch().column("tokens")
    shape = []
    while pa.types.is_list(kind):
        shape.append(first.value_lengths()[0].as_py())
        kind, first = kind.value_type, first.flatten()
    # the keys that datasets.load_from_disk needs
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": f"alitok{metadata['digest']}"[:64],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    content = {
        **metadata,
        "codebook_size": codebook_size,
        "images": rows,
        "shape": shape,
        "class_names": class_names,
    }
    try:
        datasets.DatasetInfo(features=features).write_to_directory(str(folder))
    except OSError as error:
        raise BadInput(f"Cannot write {folder}: {error.strerror or error}.") from error
    write_json(folder / "state.json", state)
    write_json(folder / METADATA_FILE, content)


def check_row(
    label: int, tokens: NDArray[Any], shape: tuple[int, ...], codebook_size: int, classes: int, number: int
) -> None:
    """Raises ValueError if an image's ids or label cannot go into a cache."""
    if tokens.shape != shape or tokens.ndim not in (2, 3):
        raise ValueError(f"Ids of image {number} have the shape {tokens.shape}, expected {shape}.")
    if tokens.min() < 0 or tokens.max() >= codebook_size or not 0 <= label < classes:
        raise ValueError(f"An id or the label of image {number} is out of range.")


def token_batch(labels: Sequence[int], ids: NDArray[Any], codebook_size: int) -> pa.RecordBatch:
    """Rows of a cache: labels (images,), ids (images, views, N) or (images, views, N, S)."""
    nested: pa.Array = pa.array(ids.astype(id_type(codebook_size)).reshape(-1))
    for length in reversed(ids.shape[1:]):
        nested = pa.ListArray.from_arrays(pa.array(np.arange(0, len(nested) + 1, length, dtype=np.int32)), nested)
    return pa.record_batch([pa.array(labels, type=pa.int64()), nested], names=["label", "tokens"])


class TokenCache:
    """Reads a token cache through memory-mapped files; only gathered ids are loaded into memory.

    Caches from elsewhere, of the same form but without `METADATA_FILE`, are accepted with a warning: `digest` and
    `codebook_size` are then None, and classes are named by their numbers.

    Attributes:
        views: views per image.
        num_tokens: N, tokens that are read per image.
        sub_codes: S, ids per token.
        labels: (images,) int64.
        recipe: how the views were cropped; empty if unknown.
        metadata: the content of `METADATA_FILE`.

    Args:
        keep: read only this many tokens of an image, the first ones; None for all.

    Raises:
        BadInput: the folder is not a token cache, is damaged, has lists of different lengths, or fewer tokens than
            `keep`.
    """

    def __init__(self, folder: str | Path, keep: int | None = None) -> None:
        self.folder, self.keep = Path(folder), keep
        dataset = _load(self.folder)
        table = dataset.data.table
        self._blocks = [_as_array(block, self.folder) for block in table.column("tokens").chunks if len(block)]
        shapes = {block.shape[1:] for block in self._blocks}
        if len(shapes) != 1:
            raise BadInput(f"Token cache {folder} must hold lists of one length, not {len(shapes)} different ones.")
        shape = shapes.pop()
        if len(shape) not in (2, 3):
            raise BadInput(f"Token cache {folder} must hold views x tokens (x sub-codes) per image, not {shape}.")
        self.views, self.num_tokens = int(shape[0]), int(shape[1])
        self.sub_codes = int(shape[2]) if len(shape) == 3 else 1
        if keep is not None:
            if not 1 <= keep <= self.num_tokens:
                raise BadInput(f"Token cache {folder} has {self.num_tokens} tokens an image; it cannot keep {keep}.")
            self.num_tokens = keep
        self._starts = np.cumsum([0, *(len(block) for block in self._blocks)])
        self.labels = torch.from_numpy(table.column("label").to_numpy().astype(np.int64))

        metadata = _read_metadata(self.folder)
        self.digest: str | None = metadata.get("digest")
        self.codebook_size: int | None = metadata.get("codebook_size")
        self.metadata = metadata
        self.recipe: dict[str, Any] = metadata.get("recipe", {})
        names = metadata.get("class_names") or getattr(dataset.features["label"], "names", None)
        self.class_names: list[str] = names or [str(label) for label in range(int(self.labels.max()) + 1)]
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(self.class_names):
            raise BadInput(f"Token cache {folder} has labels outside its {len(self.class_names)} classes.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def evaluation_view(self) -> int:
        """The view for evaluation: the center crop of ten (see `ten_crop`), else the first."""
        return 4 if self.views == 10 else 0

    def __reduce__(self) -> tuple[type["TokenCache"], tuple[Path, int | None], dict[str, Any]]:
        # loader processes map the files again instead of copying them
        return TokenCache, (self.folder, self.keep), {"codebook_size": self.codebook_size}

    def gather(self, indices: Tensor, views: Tensor) -> Tensor:
        """Ids of image indices[b] in view views[b].

        Args:
            indices, views: (B,) int64.

        Returns:
            (B, N) or (B, N, S) int64.

        Raises:
            BadInput: an id is not below the codebook size.
        """
        numbers, chosen = indices.numpy(), views.numpy()
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(f"image indices must be in [0, {len(self)})")
        places = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = numbers - self._starts[places]
        shape = (self.num_tokens,) if self.sub_codes == 1 else (self.num_tokens, self.sub_codes)
        ids = np.empty((len(numbers), *shape), dtype=np.int64)
        for target, place, row, view in zip(ids, places, rows, chosen, strict=True):
            target[...] = self._blocks[place][row, view, : self.num_tokens]
        if ids.size and (ids.min() < 0 or (self.codebook_size is not None and ids.max() >= self.codebook_size)):
            raise BadInput(f"Token cache {self.folder} has ids outside its codebook of {self.codebook_size}.")
        return torch.from_numpy(ids)


def _load(folder: Path) -> Any:
    """The `datasets.Dataset` of a cache folder; for a cache from elsewhere, its train split or parquet files."""
    import datasets

    if not folder.is_dir():
        raise BadInput(
            f"Token cache {folder} does not exist; make it with `alitok tokenize` or `make tokenize`, or name another"
            " one with --define.cache or make's CACHE=."
        )
    parquet = sorted(str(path) for place in (folder, folder / "data") for path in place.glob("[!.]*.parquet"))
    try:
        dataset = load_files("parquet", parquet) if parquet else datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets and pyarrow raise many kinds on damaged files
        raise BadInput(f"{folder} is no readable token cache: {first_line(error)}.") from error
    if isinstance(dataset, datasets.DatasetDict):
        if "train" not in dataset:
            raise BadInput(f"Token cache {folder} has no split train; name one of {', '.join(dataset)} as its folder.")
        dataset = dataset["train"]
    missing = {"label", "tokens"} - set(dataset.column_names)
    if missing:
        raise BadInput(f"{folder} is no token cache: it has no column {' or '.join(sorted(missing))}.")
    if len(dataset) == 0:
        raise BadInput(f"Token cache {folder} is empty.")
    labels = dataset.data.column("label")
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise BadInput(f"Token cache {folder} must have a whole number as the label of each image.")
    return dataset


def _as_array(block: pa.Array, folder: Path) -> NDArray[Any]:
    """A block of nested lists as one array that shares the file's memory."""
    shape = [len(block)]
    while pa.types.is_nested(block.type):
        if not (_is_list(block.type) or pa.types.is_fixed_size_list(block.type)):
            raise BadInput(f"Token cache {folder} has tokens of the type {block.type}, not lists of integers.")
        if block.null_count:
            raise BadInput(f"Token cache {folder} has images without tokens.")
        if pa.types.is_fixed_size_list(block.type):
            length = block.type.list_size
        else:
            lengths = np.diff(block.offsets.to_numpy())
            length = int(lengths[0])
            if (lengths != length).any():
                raise BadInput(f"Token cache {folder} has lists of different lengths; make it again.")
        if length == 0:
            raise BadInput(f"Token cache {folder} has empty lists of tokens; make it again.")
        shape.append(length)
        block = block.flatten()
    if not pa.types.is_integer(block.type) or block.null_count:
        raise BadInput(f"Token cache {folder} has tokens of the type {block.type}, or missing ones, not integers.")
    return block.to_numpy(zero_copy_only=True).reshape(shape)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _read_metadata(folder: Path) -> dict[str, Any]:
    path = folder / METADATA_FILE
    if not path.is_file():
        warnings.warn(
            f"Token cache {folder} has no {METADATA_FILE}: which tokenizer made it cannot be checked.", stacklevel=3
        )
        return {}
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}); make the token cache again.") from error
    if not isinstance(metadata, dict):
        raise BadInput(f"{path} must hold a JSON object; make the token cache again.")
    return metadata
