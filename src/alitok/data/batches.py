"""Batches whose order and crops depend only on seed and position, not on the number of devices.

Global step s has the positions s * global_batch .. (s + 1) * global_batch - 1. In a data set of n images, position p is
place p mod n of epoch p // n. Every epoch has a different order.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from alitok.common.errors import BadInput
from alitok.common.random import derive_seed, stream
from alitok.data.pictures import UnreadableImage, crop, train_crop
from alitok.data.sources import Source
from alitok.data.streaming import mixed
from alitok.data.token_cache import TokenCache

Batch = dict[str, Tensor]
MOST_REPLACEMENTS = 20

log = logging.getLogger("alitok")


class Slots(NamedTuple):
    """The images of a batch: positions and image indices, both (B,) int64."""

    positions: Tensor
    indices: Tensor


class TrainOrder:
    """One rank's share of each global batch, from step `start()` on, without end.

    Args:
        total: number of images.
        start: returns the first step; called each time an iteration begins.
        blocks, window: see `blocks_of` and `window_of`.

    Raises:
        BadInput: the global batch is not a multiple of the number of processes.
    """

    def __init__(
        self,
        total: int,
        global_batch: int,
        seed: int,
        rank: int,
        world_size: int,
        start: Callable[[], int],
        blocks: Tensor | None = None,
        window: int | None = None,
    ) -> None:
        if global_batch < 1 or global_batch % world_size:
            raise BadInput(f"The global batch of {global_batch} does not divide by {world_size} devices; change one.")
        self.total, self.global_batch, self.seed, self.start = total, global_batch, seed, start
        self.share = global_batch // world_size
        self.offset = rank * self.share
        self.blocks, self.window = blocks, window
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))

    def __iter__(self) -> Iterator[Slots]:
        step = self.start()
        while True:
            yield self.slots(step)
            step += 1

    def slots(self, step: int) -> Slots:
        """This rank's share of global step `step`."""
        first = step * self.global_batch + self.offset
        positions = torch.arange(first, first + self.share)
        epochs, places = positions // self.total, positions % self.total
        indices = torch.empty_like(positions)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            indices[here] = self._order(epoch)[places[here]]
        return Slots(positions, indices)

    def _order(self, epoch: int) -> Tensor:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, mixed(self.total, self.blocks, stream(self.seed, "order", epoch), self.window))
        return self._epoch[1]


class Parts:
    """Splits the batches of an order into parts, so that different loader processes can make them.

    Args:
        most: the most images of a part; None = the whole batch.

    Attributes:
        per_batch: parts per batch.
    """

    def __init__(self, order: TrainOrder, most: int | None) -> None:
        self.order, self.most = order, min(most or order.share, order.share)
        self.per_batch = -(-order.share // self.most)

    def __iter__(self) -> Iterator[Slots]:
        for whole in self.order:
            for pair in zip(whole.positions.split(self.most), whole.indices.split(self.most), strict=True):
                yield Slots(*pair)


class ValidationOrder:
    """Every image once, in a fixed shuffled order, spread over the ranks without duplicates.

    All ranks get the same number of batches, none of them empty, so that every rank takes part in each collective.
    Ranks differ by at most one image.

    Args:
        blocks, window: see `blocks_of` and `window_of`.

    Raises:
        BadInput: there are fewer images than processes.
    """

    def __init__(
        self,
        total: int,
        batch: int,
        rank: int,
        world_size: int,
        blocks: Tensor | None = None,
        window: int | None = None,
    ) -> None:
        if total < world_size:
            raise BadInput(f"The validation split has {total} image(s), fewer than the {world_size} devices.")
        batches = max(1, min(-(-total // (world_size * batch)), total // world_size))
        # shuffled, so that the first batch, which is shown, has several classes
        positions = torch.arange(rank, total, world_size)
        indices = mixed(total, blocks, stream("validation order"), window)[positions]
        self.batches = [
            Slots(*pair) for pair in zip(positions.tensor_split(batches), indices.tensor_split(batches), strict=True)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Slots]:
        return iter(self.batches)


class Made(NamedTuple):
    """A batch, and its unreadable images: index -> reason."""

    batch: Batch
    skipped: dict[int, str]


class ImageBatches:
    """Slots -> {image (B, 3, size, size) uint8, label, index, position (B,) int64}.

    An unreadable image is left out of a validation batch. In training a different image replaces it at position p,
    drawn from the stream (seed, "replacement", p, attempt); `index` is then the number of that image.

    Args:
        train: crop as the training recipe does (position p from the stream (seed, "augment", p)); else center crop.
        crop: in training, crop at random.
        flip: in training, mirror half of the images.
    """

    def __init__(self, source: Source, size: int, seed: int, train: bool, crop: bool = True, flip: bool = True) -> None:
        self.source, self.size, self.seed = source, size, seed
        self.train, self.crop, self.flip = train, crop, flip

    def __getitem__(self, slots: Slots) -> "Made | BadInput":
        rows: list[tuple[Tensor, int, int, int]] = []
        skipped: dict[int, str] = {}
        for position, index in zip(slots.positions.tolist(), slots.indices.tolist(), strict=True):
            try:
                found = self._read(position, index, skipped)
            except BadInput as error:
                return error  # returned, not raised: a loader process would wrap its sentence in a traceback
            if found is None:
                continue
            index, picture, label = found
            if self.train:
                generator = stream(self.seed, "augment", position)
                image = train_crop(picture, self.size, generator, crop=self.crop, flip=self.flip)
            else:
                image = crop(picture, self.size)
            rows.append((image, label, index, position))
        if not rows:
            return BadInput(
                f"No image of a validation batch of {len(slots.indices)} can be read; replace or remove the damaged"
                f" ones, or give data.micro_batch a larger number. The first: {next(iter(skipped.values()))}"
            )
        images, labels, indices, positions = zip(*rows, strict=True)
        batch = {
            "image": torch.stack(images),
            "label": torch.tensor(labels),
            "index": torch.tensor(indices),
            "position": torch.tensor(positions),
        }
        return Made(batch, skipped)

    def _read(self, position: int, index: int, skipped: dict[int, str]) -> tuple[int, Image.Image, int] | None:
        """The image at a position (number, picture, label), or None to leave it out."""
        for attempt in range(MOST_REPLACEMENTS):
            try:
                return index, *self.source[index]
            except UnreadableImage as error:
                skipped[index] = str(error)
                if not self.train:
                    return None
                draw = stream(self.seed, "replacement", position, attempt)
                index = int(torch.randint(len(self.source), (1,), generator=draw))
        raise BadInput(f"{MOST_REPLACEMENTS} images in a row cannot be read; the last: {skipped.popitem()[1]}")


class TokenBatches:
    """Slots -> {tokens (B, N) or (B, N, S), label, index, position (B,)}, all int64.

    In training the views are drawn from the stream (seed, "view", step); else the view is `evaluation_view`.

    Args:
        chosen: (images,) int64, this split's images in the cache.
        global_batch: images of a global batch; None outside training.
    """

    def __init__(self, cache: TokenCache, chosen: Tensor, seed: int, global_batch: int | None) -> None:
        self.cache, self.chosen, self.seed, self.global_batch = cache, chosen, seed, global_batch

    def __getitem__(self, slots: Slots) -> "Made | BadInput":
        images = self.chosen[slots.indices]
        try:
            tokens = self.cache.gather(images, self._views(slots.positions))
        except BadInput as error:
            return error
        batch = {
            "tokens": tokens,
            "label": self.cache.labels[images],
            "index": images,
            "position": slots.positions,
        }
        return Made(batch, {})

    def _views(self, positions: Tensor) -> Tensor:
        if self.global_batch is None:
            return torch.full_like(positions, self.cache.evaluation_view)
        step = int(positions[0]) // self.global_batch
        drawn = torch.randint(
            self.cache.views, (self.global_batch,), generator=stream(self.seed, "view", step), dtype=torch.int64
        )
        return drawn[positions - step * self.global_batch]


class Loader:
    """Yields batches, whose parts different loader processes make.

    It does not subclass DataLoader: Lightning would replace its order by a distributed sampler, which pads with
    duplicates. Loader processes, if any, live as long as the loader.

    Args:
        max_skipped: the most images that this process may fail to read.
        parts: parts of the order; None = whole batches.

    Attributes:
        skipped: index -> reason, for the unreadable images.

    Raises (on iteration):
        BadInput: a token cache cannot be used, or there are more unreadable images than `max_skipped`.
    """

    def __init__(
        self,
        dataset: Any,
        order: TrainOrder | ValidationOrder,
        num_workers: int,
        max_skipped: int,
        parts: Parts | None = None,
    ) -> None:
        self.order, self.max_skipped = order, max_skipped
        self.per_batch = 1 if parts is None else parts.per_batch
        self.skipped: dict[int, str] = {}
        self.loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,  # an item is a part of a batch
            sampler=parts or order,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(derive_seed("loader")),  # else it draws from torch's global state
        )

    def __iter__(self) -> Iterator[Batch]:
        parts: list[Batch] = []
        for made in self.loader:
            if isinstance(made, BadInput):
                raise made
            for index, reason in made.skipped.items():
                self._count(index, reason)
            parts.append(made.batch)
            if len(parts) == self.per_batch:
                yield joined(parts)
                parts = []

    def _count(self, index: int, reason: str) -> None:
        if index in self.skipped:
            return
        self.skipped[index] = reason
        if self.max_skipped == 0:
            raise BadInput(reason)
        if len(self.skipped) > self.max_skipped:
            raise BadInput(
                f"{len(self.skipped)} images cannot be read, more than max_skipped = {self.max_skipped}; "
                f"the last: {reason}"
            )
        log.warning("Skipped image %d (%d so far, at most %d): %s", index, len(self.skipped), self.max_skipped, reason)


def joined(parts: Sequence[Batch]) -> Batch:
    """Joins parts into a batch, in pinned memory if they are pinned."""
    if len(parts) == 1:
        return parts[0]
    batch = {}
    for name, first in parts[0].items():
        tensors = [part[name] for part in parts]
        shape = (sum(map(len, tensors)), *first.shape[1:])
        batch[name] = torch.cat(tensors, out=torch.empty(shape, dtype=first.dtype, pin_memory=first.is_pinned()))
    return batch


def check_shared_memory(workers: int, part: int) -> None:
    """Raises BadInput if shared memory is too small for parts of `part` bytes: the system would kill the loaders."""
    place, ahead = Path("/dev/shm"), 2  # parts that each process makes in advance
    if not workers or not place.is_dir():
        return
    free, needed = shutil.disk_usage(place).free, workers * ahead * part
    if free < needed:
        raise BadInput(
            f"{workers} loader processes need {needed / 2**20:,.0f} MiB of shared memory and {place} has"
            f" {free / 2**20:,.0f}: start the container with a larger --shm-size, or set a smaller data.micro_batch or"
            " data.num_workers."
        )


class FiniteLoader(Loader):
    """A loader with a length."""

    order: ValidationOrder

    def __len__(self) -> int:
        return len(self.order)
