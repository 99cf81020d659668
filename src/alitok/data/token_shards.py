"""An unfinished token cache: shards that are written whole, survive restarts, and become the cache when complete.

Shard k contains images k * n .. (k + 1) * n - 1 of the source, so the cache depends neither on the number of processes
nor on interruptions.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alitok.common.errors import BadInput
from alitok.common.files import atomic_file, check_readable_name, renamable, write_json
from alitok.common.work import Work
from alitok.data.reading import Skip
from alitok.data.token_cache import TokenCache, check_row, token_batch, write_metadata

IMAGES_PER_SHARD = 4096
PROGRESS = "progress"  # folder that only an unfinished cache needs
# Keys of a job -> their names in messages.
JOB_KEYS = {
    "digest": "tokenizer",
    "recipe": "crop recipe",
    "source": "data set",
    "image_column": "image column",
    "images_per_shard": "size of shard",
}


class TokenShards:
    """The shards of one cache, collected in `<folder>.partial`.

    Args:
        folder: folder of the finished cache.
        job: JSON values that must be the same after a restart: `digest`, `recipe`, `source`, ... (`JOB_KEYS`).
        total: images of the source.
        class_names: class names of the source.

    Raises:
        BadInput: a shard would have less than one image, or the folder's name is not UTF-8.
    """

    def __init__(
        self,
        folder: Path,
        job: Mapping[str, Any],
        total: int,
        *,
        codebook_size: int,
        class_names: list[str],
        images_per_shard: int = IMAGES_PER_SHARD,
    ) -> None:
        folder = renamable(folder)
        check_readable_name(folder)
        if images_per_shard < 1:
            raise BadInput(f"A shard must hold at least 1 image, not {images_per_shard}.")
        self.folder, self.total, self.images_per_shard = folder, total, images_per_shard
        self.codebook_size, self.class_names = codebook_size, class_names
        self.partial = folder.with_name(f"{folder.name}.partial")
        self.progress = self.partial / PROGRESS
        settings = {**job, "images_per_shard": images_per_shard}
        record = f"{PROGRESS}/job.json"
        self.work = Work(self.partial, settings, "an unfinished token cache", record, called=JOB_KEYS)
        if "image_column" not in (self.work.held() or settings):
            self.work.settings.pop("image_column", None)  # begun by a version that did not record it
        self.count = -(-total // images_per_shard)

    def share(self) -> list[int]:
        """Begins or resumes the cache, and returns this process's share of the missing shards. A collective.

        Raises:
            BadInput: the cache cannot be written, or is the unfinished cache of a different job.
        """
        return self.work.share(self.pending)

    def images(self, shard: int) -> range:
        """The images of a shard."""
        first = shard * self.images_per_shard
        return range(first, min(first + self.images_per_shard, self.total))

    def pending(self) -> list[int]:
        """Shards that are missing or damaged."""
        return [shard for shard in range(self.count) if self._record(shard) is None]

    def write(self, shard: int, labels: Sequence[int], ids: Sequence[NDArray[Any]], skipped: Sequence[Skip]) -> None:
        """Writes a whole shard: its rows, then the record that marks it as finished.

        Args:
            labels, ids: labels and ids, (views, N) or (views, N, S), of the readable images in the order of the source.

        Raises:
            BadInput: the shard cannot be written.
            ValueError: an image of the shard is missing, or a row is invalid.
        """
        if len(labels) != len(ids) or len(ids) + len(skipped) != len(self.images(shard)):
            raise ValueError(f"Shard {shard} has {len(ids)} + {len(skipped)} of {len(self.images(shard))} images.")
        for image, (label, tokens) in enumerate(zip(labels, ids, strict=True)):
            check_row(label, tokens, ids[0].shape, self.codebook_size, len(self.class_names), image)
        if ids:
            batch = token_batch(labels, np.stack(ids), self.codebook_size)
            with atomic_file(self.path(shard)) as temporary, pa.ipc.new_stream(str(temporary), batch.schema) as stream:
                stream.write_batch(batch)
        write_json(self._record_path(shard), {"rows": len(ids), "skipped": [skip._asdict() for skip in skipped]})

    def path(self, shard: int) -> Path:
        return self.partial / f"data-{shard:05d}-of-{self.count:05d}.arrow"

    def skipped(self) -> list[Skip]:
        """The unreadable images of the finished shards, in order."""
        records = [self._record(shard) for shard in range(self.count)]
        return [Skip(**skip) for record in records if record is not None for skip in record["skipped"]]

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Turns the finished shards into the cache. For one process.

        Args:
            metadata: as for `write_metadata`.

        Raises:
            BadInput: no image could be read, or the folder cannot be written.
            ValueError: a shard is missing.
        """
        if missing := self.pending():
            raise ValueError(f"{len(missing)} shards are missing, the first is {missing[0]}.")
        files = [self.path(shard).name for shard in range(self.count) if self.path(shard).is_file()]
        if not files:
            raise BadInput("No image of the data set could be read; there is nothing to cache.")
        skipped = self.skipped()
        write_metadata(
            self.partial,
            files,
            rows=self.total - len(skipped),
            codebook_size=self.codebook_size,
            class_names=self.class_names,
            metadata={**metadata, "skipped": [skip._asdict() for skip in skipped]},
        )
        TokenCache(self.partial)  # checks every file
        try:
            self.partial.replace(self.folder)
        except OSError as error:
            raise BadInput(f"Cannot write {self.folder}: {error.strerror or error}.") from error
        clean(self.folder)

    def _record_path(self, shard: int) -> Path:
        return self.progress / f"{shard:05d}.json"

    def _record(self, shard: int) -> dict[str, Any] | None:
        """The record of a finished shard; None if it is not finished, or was lost later (a power failure)."""
        try:
            record = dict(json.loads(self._record_path(shard).read_text(encoding="utf-8")))
            rows = 0
            if record["rows"]:
                with pa.memory_map(str(self.path(shard))) as file, pa.ipc.open_stream(file) as stream:
                    rows = sum(batch.num_rows for batch in stream)
        except (OSError, ValueError, pa.ArrowInvalid):
            return None
        return record if rows == record["rows"] else None


def write_token_cache(
    folder: Path,
    rows: Iterable[tuple[int, NDArray[Any]]],
    *,
    codebook_size: int,
    class_names: list[str],
    images_per_shard: int = IMAGES_PER_SHARD,
    **job: Any,
) -> None:
    """Writes a cache of ids that are in memory.

    Args:
        rows: label and ids of each image. Ids are (views, N) or (views, N, S), the same shape for all.
        job: `digest` of the tokenizer, `recipe` of the crops, and any other metadata.

    Raises:
        BadInput: the folder cannot be written, or is an unfinished cache with other metadata.
        ValueError: shapes differ, or an id or a label is out of range.
    """
    labels, ids = zip(*rows, strict=True)
    options: dict[str, Any] = {"codebook_size": codebook_size, "class_names": class_names}
    shards = TokenShards(folder, job, len(ids), images_per_shard=images_per_shard, **options)
    shards.work.begin()
    for shard in shards.pending():
        part = slice(shards.images(shard).start, shards.images(shard).stop)
        shards.write(shard, labels[part], ids[part], [])
    shards.finish(job)


def clean(folder: Path) -> None:
    """Removes the files from a finished cache that only an unfinished one needs."""
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)
