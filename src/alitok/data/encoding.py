"""Encodes a data set to a token cache, shard by shard, with any number of processes."""

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger("alitok")


class Pace(NamedTuple):
    """Crops that this process encoded, its seconds and those waiting for images; unreadable images of all processes."""

    crops: int
    seconds: float
    waiting: float
    skipped: int

    def __str__(self) -> str:
        speed = f"{self.crops / max(self.seconds, 1e-9):,.0f} crops/s a process"
        left_out = f", {self.skipped:,} unreadable images left out" if self.skipped else ""
        return f"{speed}, {self.waiting / max(self.seconds, 1e-9):.0%} of the time waiting for images{left_out}"


def crop_recipe(size: int, crops: str) -> dict[str, Any]:
    """How a cache's views are cropped, for its metadata."""
    from alitok.data.pictures import ten_crop_side

    return {"crop": crops, "resize": ten_crop_side(size) if crops == "ten" else size, "size": size}


def job(tokenizer: Any, source: Any, crops: str, precision: str) -> dict[str, Any]:
    """The values that decide the content of a cache."""
    from alitok.data.sources import fingerprint

    return {
        "digest": tokenizer.card["digest"],
        "recipe": crop_recipe(tokenizer.image_size, crops),
        "source": fingerprint(source),
        "precision": precision,
        # a fingerprint leaves it out
        **({} if source.origin.columns is None else {"image_column": source.origin.columns["image"]}),
    }


def is_finished(out: Path, wanted: Mapping[str, Any], source: Any) -> bool:
    """Whether the cache is already finished.

    Raises:
        BadInput: the folder contains a different cache, or something else.
    """
    from alitok.common.errors import BadInput
    from alitok.data.token_cache import TokenCache
    from alitok.data.token_shards import clean

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        cache = TokenCache(out)
    except BadInput as error:
        raise BadInput(f"--out {out} holds something else than a token cache; name another folder.") from error
    images = len(cache) + len(cache.metadata.get("skipped", []))
    made = {**cache.metadata, "images": images, "class_names": cache.class_names}
    asked = {**wanted, "images": len(source), "class_names": source.class_names}
    # a cache made elsewhere, or by an earlier version, has less metadata
    if cache.digest is not None and any(made.get(key, value) != value for key, value in asked.items()):
        raise BadInput(
            f"{out} holds a token cache of another tokenizer, data set, image column or crop recipe, or of another"
            " number of images; name another folder."
        )
    clean(out)
    return True


def decoding_workers(asked: int | None, device: Any) -> int:
    """Number of decoding processes: as asked; else this process's share of the cores with a GPU, none without."""
    if asked is not None:
        return asked
    if device.type != "cuda":
        return 0
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def tokenize(
    tokenizer: Any,
    source: Any,
    out: Path,
    crops: str = "ten",
    batch: int = 64,
    workers: int = 0,
    *,
    precision: str = "32",
    images_per_shard: int = 4096,
    max_skipped: int = 10,
) -> Pace:
    """Writes the token cache of a source. Every process of the group, if there is one, makes its share of the shards.

    Each image is decoded and resized once; its views are cut on the tokenizer's device. The batches of a shard are the
    same in every run, and therefore its ids.

    Args:
        tokenizer: a loaded tokenizer with its card, on this process's device.
        crops: "ten" (the recipe's ten crops of a center crop to int(1.1 x size)) or "center" (one view).
        batch: views that are encoded together.
        workers: processes that decode.
        precision: precision of the encoder: "32" (the recipe's), "tf32" or "bf16" (faster on a GPU, some ids differ).
        max_skipped: the most unreadable images; they are left out and listed in the metadata.

    Raises:
        BadInput: there are too many unreadable images, or the folder cannot be written or has the unfinished cache of a
            different job. Finished shards stay for the next start.
    """
    from alitok.common.devices import float32_products, warn_of_bfloat16
    from alitok.common.distributed import all_or_none, group_alone_in, rank
    from alitok.data.sources import describe_source
    from alitok.data.token_shards import TokenShards

    wanted = job(tokenizer, source, crops, precision)
    shards = TokenShards(
        out,
        wanted,
        len(source),
        codebook_size=tokenizer.codebook_size,
        class_names=source.class_names,
        images_per_shard=images_per_shard,
    )
    if precision == "bf16":
        warn_of_bfloat16(next(tokenizer.parameters()).device)
    with group_alone_in(shards.partial):
        mine = shards.share()
        with all_or_none():  # every process counts before one writes
            skipped_before = len(shards.skipped())
        encode = Encoding(tokenizer, crops, max(1, batch // (10 if crops == "ten" else 1)), precision)
        with all_or_none(), float32_products(tf32=precision == "tf32"):
            crop_count, seconds, waiting = _make(shards, mine, source, encode, workers, max_skipped - skipped_before)
        skipped = shards.skipped()
        with all_or_none():
            check_skipped(len(skipped), max_skipped, skipped[-1].reason if skipped else "")
            if rank() == 0:
                shards.finish({**wanted, "source_description": describe_source(source)})
    return Pace(crop_count, seconds, waiting, len(skipped))


class Encoding(NamedTuple):
    """Turns pictures into ids."""

    tokenizer: Any
    crops: str
    images: int  # images that are encoded together
    precision: str

    def __call__(self, pictures: Any) -> Any:
        """(B, 3, side, side) uint8 -> ids (B, views, N) or (B, views, N, S), on the tokenizer's device."""
        import torch

        from alitok.data.pictures import ten_views

        device = next(self.tokenizer.parameters()).device
        size = self.tokenizer.image_size
        pictures = pictures.to(device, non_blocking=True)
        views = ten_views(pictures, size) if self.crops == "ten" else pictures[:, None]
        reduced = torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with torch.no_grad():
            with reduced:
                latents = self.tokenizer.encode_latents(views.flatten(0, 1).float() / 255)
            return self.tokenizer.ids_of(latents).unflatten(0, views.shape[:2])


class Pictures:
    """Map-style data set: a range of images -> their `Crops`, or the error that ends the work."""

    def __init__(self, source: Any, side: int) -> None:
        self.source, self.side = source, side

    def __getitem__(self, images: range) -> Any:
        from alitok.common.errors import BadInput
        from alitok.data.reading import read_crops

        try:
            return read_crops(self.source, images, self.side, skip=True)
        except BadInput as error:
            return error  # returned, not raised: a loader process would wrap its sentence in a traceback


def _make(
    shards: Any, mine: Sequence[int], source: Any, encode: Encoding, workers: int, may_skip: int
) -> tuple[int, float, float]:
    """Encodes and writes these shards; returns crops, seconds, and seconds of waiting for images."""
    from alitok.common.devices import Fetched
    from alitok.common.errors import BadInput
    from alitok.common.progress import counter

    side = crop_recipe(encode.tokenizer.image_size, encode.crops)["resize"]
    parts = [(shard, part) for shard in mine for part in _parts(shards.images(shard), encode.images)]
    start, waiting, crop_count, left_out = time.perf_counter(), 0.0, 0, 0
    labels: list[int] = []
    ids: list[Any] = []
    skipped: list[Any] = []
    ahead: deque[tuple[int, range, list[int], Any]] = deque()
    with counter("Tokenizing", sum(len(shards.images(shard)) for shard in mine)) as advance:

        def take() -> None:
            """Fetches the ids of the oldest queued batch, and writes the shard if they complete it."""
            nonlocal labels, ids, skipped
            shard, part, found, encoded = ahead.popleft()
            labels += found
            ids += [] if encoded is None else list(encoded.get().numpy())
            if part.stop == shards.images(shard).stop:
                shards.write(shard, labels, ids, [skip for skip in skipped if skip.image < part.stop])
                labels, ids, skipped = [], [], [skip for skip in skipped if skip.image >= part.stop]
            advance(len(part))

        loader = iter(_loader(Pictures(source, side), [part for _, part in parts], workers))
        for shard, part in parts:
            before = time.perf_counter()
            made = next(loader)
            waiting += time.perf_counter() - before
            if isinstance(made, BadInput):
                raise made
            missing = made.skipped
            skipped += missing
            for skip in missing:
                left_out += 1
                log.warning("Left out image %d (%d so far): %s", skip.image, left_out, skip.reason)
            if missing:
                check_skipped(left_out, may_skip, missing[-1].reason)
            encoded = None
            if len(made.images):
                found = encode(made.images)
                crop_count += found.shape[0] * found.shape[1]
                encoded = Fetched(found)
            ahead.append((shard, part, made.labels.tolist(), encoded))
            if len(ahead) > 1:  # a GPU computes one batch while the next is sent to it
                take()
        while ahead:
            take()
    return crop_count, time.perf_counter() - start, waiting


def _parts(images: range, size: int) -> Iterator[range]:
    for first in range(images.start, images.stop, size):
        yield range(first, min(first + size, images.stop))


def _loader(pictures: Pictures, parts: Sequence[range], workers: int) -> Any:
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(
        pictures,  # type: ignore[arg-type]
        batch_size=None,  # an item is a batch
        sampler=parts,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_as_it_is,
    )


def _as_it_is(item: Any) -> Any:
    return item


def check_skipped(number: int, limit: int, reason: str) -> None:
    """Raises BadInput if more images cannot be read than allowed.

    Args:
        reason: why the last one cannot be read.
    """
    from alitok.common.errors import BadInput

    if number > limit:
        raise BadInput(f"More images than --max-skipped allows cannot be read; the last: {reason}")
