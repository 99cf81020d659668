"""Batches as a function of seed and position: which image comes when, and how it is cut, whatever the devices.

Global step s covers the positions s * global_batch ... (s + 1) * global_batch - 1; position p of a data set of n
images is place p mod n of epoch p // n, and every epoch has an order of its own.
"""

import logging
from collections.abc import Callable, Iterator
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
    """What a batch is made of: positions and image indices, both (B,) int64."""

    positions: Tensor
    indices: Tensor


class TrainOrder:
    """One rank's share of each global batch, without end, from step `start()` on.

    Args:
        total: number of images.
        start: asked each time an iteration begins.
        blocks: (total,) int64, images that are read together (`blocks_of`), None = any order costs the same.

    Raises:
        BadInput: the global batch does not divide by the number of processes.
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
    ) -> None:
        if global_batch < 1 or global_batch % world_size:
            raise BadInput(f"The global batch of {global_batch} does not divide by {world_size} devices; change one.")
        self.total, self.global_batch, self.seed, self.start = total, global_batch, seed, start
        self.share = global_batch // world_size
        self.offset = rank * self.share
        self.blocks = blocks
        self._epoch: tuple[int, Tensor] = (-1, torch.empty(0))

    def __iter__(self) -> Iterator[Slots]:
        step = self.start()
        while True:
            yield self.slots(step)
            step += 1

    def slots(self, step: int) -> Slots:
        """This rank's part of global step `step`."""
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
            self._epoch = (epoch, mixed(self.total, self.blocks, stream(self.seed, "order", epoch)))
        return self._epoch[1]


class ValidationOrder:
    """Every image once, in a fixed mixed order, spread over the ranks without duplicates.

    All ranks get the same number of batches, none of them empty, so that collectives inside a step meet; ranks differ
    by one image at most.

    Raises:
        BadInput: fewer images than processes.
    """

    def __init__(self, total: int, batch: int, rank: int, world_size: int, blocks: Tensor | None = None) -> None:
        if total < world_size:
            raise BadInput(f"The validation split has {total} image(s), fewer than the {world_size} devices.")
        batches = max(1, min(-(-total // (world_size * batch)), total // world_size))
        # mixed, so that the first batch (the one that is shown) is not of a single class
        positions = torch.arange(rank, total, world_size)
        indices = mixed(total, blocks, stream("validation order"))[positions]
        self.batches = [
            Slots(*pair) for pair in zip(positions.tensor_split(batches), indices.tensor_split(batches), strict=True)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Slots]:
        return iter(self.batches)


class Made(NamedTuple):
    """A batch, and the images that could not be read for it: index -> why."""

    batch: Batch
    skipped: dict[int, str]


class ImageBatches:
    """Slots -> {image (B, 3, size, size) uint8, label, index, position (B,) int64}.

    An image that cannot be read is left out of a validation batch; in training another takes its place at position p,
    drawn from the stream (seed, "replacement", p, attempt). `index` is the number of the image that is there.

    Args:
        train: cut at random by the recipe (position p from the stream (seed, "augment", p)), else centre crop.
        crop, flip: in training, whether the crop is random and half of the images are mirrored.
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
                return error  # handed on, not raised: a loader process would wrap its sentence in a traceback
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
            return BadInput(f"No image of a validation batch can be read: {next(iter(skipped.values()))}")
        images, labels, indices, positions = zip(*rows, strict=True)
        batch = {
            "image": torch.stack(images),
            "label": torch.tensor(labels),
            "index": torch.tensor(indices),
            "position": torch.tensor(positions),
        }
        return Made(batch, skipped)

    def _read(self, position: int, index: int, skipped: dict[int, str]) -> tuple[int, Image.Image, int] | None:
        """The image at a position (number, picture, label), or None where it is to be left out."""
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

    In training the view of position p is drawn from the stream (seed, "view", step), else it is the measured one.

    Args:
        chosen: (images,) int64, the images of the cache that belong to this split.
        global_batch: None outside training.
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
    """A DataLoader of ready-made batches.

    It is not a DataLoader itself, so that Lightning does not replace its order by a distributed sampler (which pads
    with duplicates). Loader processes, if any, live as long as the loader.

    Args:
        max_skipped: the most images that this process may fail to read.

    Attributes:
        skipped: index -> why, of the images that could not be read.

    Raises (on iteration):
        BadInput: a token cache that cannot be used, or more unreadable images than `max_skipped`.
    """

    def __init__(self, dataset: Any, order: TrainOrder | ValidationOrder, num_workers: int, max_skipped: int) -> None:
        self.order, self.max_skipped = order, max_skipped
        self.skipped: dict[int, str] = {}
        self.loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,  # an item is a batch
            sampler=order,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(derive_seed("loader")),  # leaves torch's global state alone
        )

    def __iter__(self) -> Iterator[Batch]:
        for made in self.loader:
            if isinstance(made, BadInput):
                raise made
            for index, reason in made.skipped.items():
                self._count(index, reason)
            yield made.batch

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


class FiniteLoader(Loader):
    """A loader with a length."""

    order: ValidationOrder

    def __len__(self) -> int:
        return len(self.order)
