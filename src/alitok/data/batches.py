"""Batches as a function of seed and position: which image comes when, and how it is cut, whatever the devices.

Global step s covers the positions s * global_batch ... (s + 1) * global_batch - 1; position p of a data set of n
images is place p mod n of epoch p // n, and every epoch has an order of its own.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alitok.common.errors import BadInput
from alitok.common.random import derive_seed, stream
from alitok.data.sources import Source
from alitok.data.token_cache import TokenCache
from alitok.data.transforms import center_crop, to_tensor, train_crop

Batch = dict[str, Tensor]


class Slots(NamedTuple):
    """What a batch is made of: positions and image indices, both (B,) int64."""

    positions: Tensor
    indices: Tensor


class TrainOrder:
    """One rank's share of each global batch, without end, from step `start()` on.

    Args:
        total: number of images.
        start: asked each time an iteration begins.

    Raises:
        BadInput: the global batch does not divide by the number of processes.
    """

    def __init__(
        self, total: int, global_batch: int, seed: int, rank: int, world_size: int, start: Callable[[], int]
    ) -> None:
        if global_batch < 1 or global_batch % world_size:
            raise BadInput(f"The global batch of {global_batch} does not divide by {world_size} devices; change one.")
        self.total, self.global_batch, self.seed, self.start = total, global_batch, seed, start
        self.share = global_batch // world_size
        self.offset = rank * self.share
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
            self._epoch = (epoch, torch.randperm(self.total, generator=stream(self.seed, "order", epoch)))
        return self._epoch[1]


class ValidationOrder:
    """Every image once, in a fixed mixed order, spread over the ranks without duplicates.

    All ranks get the same number of batches, none of them empty, so that collectives inside a step meet; ranks differ
    by one image at most.

    Raises:
        BadInput: fewer images than processes.
    """

    def __init__(self, total: int, batch: int, rank: int, world_size: int) -> None:
        if total < world_size:
            raise BadInput(f"The validation split has {total} image(s), fewer than the {world_size} devices.")
        batches = max(1, min(-(-total // (world_size * batch)), total // world_size))
        # mixed, so that the first batch (the one that is shown) is not of a single class
        positions = torch.arange(rank, total, world_size)
        indices = torch.randperm(total, generator=stream("validation order"))[positions]
        self.batches = [
            Slots(*pair) for pair in zip(positions.tensor_split(batches), indices.tensor_split(batches), strict=True)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Slots]:
        return iter(self.batches)


class ImageBatches:
    """Slots -> {image (B, 3, size, size) uint8, label, index, position (B,) int64}.

    Args:
        train: cut at random by the recipe (position p from the stream (seed, "augment", p)), else centre crop.
        crop, flip: in training, whether the crop is random and half of the images are mirrored.
    """

    def __init__(self, source: Source, size: int, seed: int, train: bool, crop: bool = True, flip: bool = True) -> None:
        self.source, self.size, self.seed = source, size, seed
        self.train, self.crop, self.flip = train, crop, flip

    def __getitem__(self, slots: Slots) -> "Batch | BadInput":
        images, labels = [], []
        for position, index in zip(slots.positions.tolist(), slots.indices.tolist(), strict=True):
            try:
                picture, label = self.source[index]
            except BadInput as error:
                return error  # handed on, not raised: a loader process would wrap its sentence in a traceback
            if self.train:
                generator = stream(self.seed, "augment", position)
                images.append(train_crop(picture, self.size, generator, crop=self.crop, flip=self.flip))
            else:
                images.append(to_tensor(center_crop(picture, self.size)))
            labels.append(label)
        return {
            "image": torch.stack(images),
            "label": torch.tensor(labels),
            "index": slots.indices,
            "position": slots.positions,
        }


class TokenBatches:
    """Slots -> {tokens (B, N) or (B, N, S), label, index, position (B,)}, all int64.

    In training the view of position p is drawn from the stream (seed, "view", step); else it is the middle crop.

    Args:
        chosen: (images,) int64, the images of the cache that belong to this split.
        global_batch: None outside training.
    """

    def __init__(self, cache: TokenCache, chosen: Tensor, seed: int, global_batch: int | None) -> None:
        self.cache, self.chosen, self.seed, self.global_batch = cache, chosen, seed, global_batch

    def __getitem__(self, slots: Slots) -> "Batch | BadInput":
        images = self.chosen[slots.indices]
        try:
            tokens = self.cache.gather(images, self._views(slots.positions))
        except BadInput as error:
            return error
        return {
            "tokens": tokens,
            "label": self.cache.labels[images],
            "index": images,
            "position": slots.positions,
        }

    def _views(self, positions: Tensor) -> Tensor:
        if self.global_batch is None:
            return torch.full_like(positions, 4 if self.cache.views == 10 else 0)
        step = int(positions[0]) // self.global_batch
        drawn = torch.randint(
            self.cache.views, (self.global_batch,), generator=stream(self.seed, "view", step), dtype=torch.int64
        )
        return drawn[positions - step * self.global_batch]


class Loader:
    """A DataLoader of ready-made batches.

    It is not a DataLoader itself, so that Lightning does not replace its order by a distributed sampler (which pads
    with duplicates). Loader processes, if any, live as long as the loader.

    Raises (on iteration):
        BadInput: an image or a token cache that cannot be used.
    """

    def __init__(self, dataset: Any, order: TrainOrder | ValidationOrder, num_workers: int) -> None:
        self.order = order
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
        for batch in self.loader:
            if isinstance(batch, BadInput):
                raise batch
            yield batch


class FiniteLoader(Loader):
    """A loader with a length."""

    order: ValidationOrder

    def __len__(self) -> int:
        return len(self.order)
