"""The one DataModule: images of any data spec, or tokens of a cache."""

from collections.abc import Callable

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from alitok.common import distributed
from alitok.common.errors import BadInput
from alitok.data.batches import (
    Batch,
    FiniteLoader,
    ImageBatches,
    Loader,
    Parts,
    TokenBatches,
    TrainOrder,
    ValidationOrder,
    check_shared_memory,
)
from alitok.data.found import Described, Found, Origin, PassedOver, label_notes
from alitok.data.sources import NoValidation, Source, Split, blocks_of, draw_some, held_out, open_source, window_of
from alitok.data.token_cache import TokenCache


class CachedImages:
    """A split's images in a token cache, for the description of the data."""

    def __init__(self, cache: TokenCache, chosen: Tensor, train: bool, parts: list[PassedOver]) -> None:
        self.class_names, self._labels = cache.class_names, cache.labels[chosen].numpy()
        notes = label_notes(self._labels, self.class_names, train)
        if skipped := len(cache.metadata.get("skipped", [])):
            notes.append(PassedOver("images", skipped, "left out when the cache was made: they could not be read"))
        self.origin = Origin("token cache", str(cache.folder), passed_over=tuple(notes), parts=tuple(parts))

    def __len__(self) -> int:
        return len(self._labels)

    def class_labels(self) -> np.ndarray:
        return self._labels


class ImageNetDataModule(LightningDataModule):
    """Batches of images, {image (B, 3, H, W) float32 in [0, 1], label, index, position}, or of tokens, {tokens ...}.

    A training batch is one process's share of a *global* batch; the training step splits it into micro-batches. The
    training loader is endless. It begins at `start_step`, or at the trainer's global step if that is later, so that a
    resumed run continues with the next batch. Order and crops depend only on seed and position, not on devices or
    loader processes. `index` is the image's number in its split (in token mode: in the cache).

    Args:
        source: a data spec: `shapes`, a folder, or owner/name on the Hugging Face hub. Not opened in token mode.
        cache: a token cache folder; turns on token mode.
        val_cache: token cache of the validation split; None holds out a share of `cache`.
        keep: read only this many tokens of each image, the first ones, for a generator of shorter sequences; None for
            all.
        image_size: side of the crops in pixels.
        global_batch: images per optimizer step over all devices.
        micro_batch: the most images on one device at a time, also the size of a validation batch; None = its share.
        num_workers: loader processes per device.
        seed: seed of order, crops, flips and views, but not of the choice of images and of the held-out share.
        image_column, label_column: columns of a table, if their types leave a choice.
        train_split, val_split: the data set's own names of its splits.
        count, val_count: the most images of each split; for shapes the number to draw.
        val_fraction: share of train to hold out if there is no validation split and no split is named; 0: none.
        augment: random crops in training, else center crops.
        flip: mirror half of the training images.
        max_skipped: the most images of a split that a process may fail to read; each is logged, left out of validation,
            and replaced in training. 0 stops at the first.
        streaming: read parquet files of a folder or the hub in place. The order is then shuffled within a window of
            some thousand images. Each loader process fetches all data, so use only a few.

    Raises (in setup and when a loader is made):
        BadInput: data are missing or unusable, or the global batch is not a multiple of the number of devices.
    """

    def __init__(
        self,
        source: str = "shapes",
        cache: str | None = None,
        val_cache: str | None = None,
        keep: int | None = None,
        image_size: int = 256,
        global_batch: int = 256,
        micro_batch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        image_column: str | None = None,
        label_column: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        count: int | None = None,
        val_count: int | None = None,
        val_fraction: float = 0.05,
        augment: bool = True,
        flip: bool = True,
        max_skipped: int = 10,
        streaming: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("image_size", image_size, 1),
            ("global_batch", global_batch, 1),
            ("micro_batch", micro_batch, 1),
            ("count", count, 1),
            ("val_count", val_count, 1),
            ("num_workers", num_workers, 0),
            ("max_skipped", max_skipped, 0),
        ):
            if value is not None and value < least:
                raise BadInput(f"{name} must be at least {least}, not {value}.")
        self.source, self.cache, self.val_cache, self.keep = source, cache, val_cache, keep
        self.image_size, self.global_batch, self.micro_batch = image_size, global_batch, micro_batch
        self.num_workers, self.seed = num_workers, seed
        self.image_column, self.label_column = image_column, label_column
        self.train_split, self.val_split = train_split, val_split
        self.count, self.val_count, self.val_fraction = count, val_count, val_fraction
        self.augment, self.flip, self.max_skipped = augment, flip, max_skipped
        self.streaming = streaming
        self.start_step = 0
        self.splits: dict[Split, ImageBatches | TokenBatches] = {}
        self.descriptions: dict[Split, str] = {}
        self.sources: dict[str, Described] = {}
        self.loaders: dict[Split, Loader] = {}
        self.token_cache: TokenCache | None = None
        self._class_names: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Opens the splits of the stage (fit: both; validate, test: the validation split)."""
        if not self.splits and self.cache is not None:
            self._open_caches(self.cache)
        elif self.cache is None:
            if stage in (None, "fit") and "train" not in self.splits:
                source = self.open_split("train")
                self.splits["train"] = ImageBatches(
                    source, self.image_size, self.seed, True, crop=self.augment, flip=self.flip
                )
            if "val" not in self.splits:
                try:
                    self.splits["val"] = ImageBatches(self.open_split("val"), self.image_size, self.seed, False)
                except NoValidation as error:
                    if stage in (None, "fit"):
                        return
                    if self.train_split is None:
                        raise
                    raise BadInput(
                        f"{self.source} has no validation split, and train_split {self.train_split} is read whole;"
                        " name a split to validate on with val_split."
                    ) from error

    def open_split(self, split: Split) -> Source:
        named, other = (self.train_split, self.val_split)[:: 1 if split == "train" else -1]
        source = open_source(
            self.source,
            split,
            image_column=self.image_column,
            label_column=self.label_column,
            split_name=named,
            val_fraction=0 if other is not None else self.val_fraction,  # a named split is read whole
            size=self.image_size,
            count=self.count if split == "train" else self.val_count,
            streaming=self.streaming,
        )
        if self._class_names and source.class_names != self._class_names:
            raise BadInput(f"The splits of {source.name} do not have the same classes; put that right in the data.")
        self._class_names = source.class_names
        self.descriptions[split], self.sources[split] = source.description, source
        return source

    def _open_caches(self, folder: str) -> None:
        cache = TokenCache(folder, self.keep)
        everything = torch.arange(len(cache))
        aside: list[PassedOver] = []
        chosen: dict[Split, tuple[TokenCache, Tensor]] = {"train": (cache, everything)}
        if self.val_cache is not None:
            other = TokenCache(self.val_cache, self.keep)
            form, other_form = [(c.digest, c.num_tokens, c.sub_codes, c.class_names) for c in (cache, other)]
            if form != other_form:
                raise BadInput(f"Token caches {folder} and {self.val_cache} differ in tokenizer, length or classes.")
            chosen["val"] = (other, torch.arange(len(other)))
        elif self.val_fraction > 0:
            mask = held_out(len(cache), self.val_fraction, 0)
            chosen = {"train": (cache, everything[~mask]), "val": (cache, everything[mask])}
            number = int(mask.sum())
            why = f"{number:,} of {len(cache):,} held out for validation, because there is no val_cache"
            aside.append(PassedOver("images", number, why))
        for split, (part, images) in chosen.items():
            count = self.count if split == "train" else self.val_count
            parts = list(aside)
            if count is not None and count < len(images):
                why = f"{count:,} of the {len(images):,} of {split} are asked for"
                parts.append(PassedOver("images", len(images) - count, why))
                images = images[draw_some(len(images), count, 0)]
            self.sources[split] = CachedImages(part, images, split == "train", parts)
            drawn = split == "train" and self.augment  # else the evaluation's view
            self.splits[split] = TokenBatches(part, images, self.seed, self.global_batch if drawn else None)
            self.descriptions[split] = f"{len(images):,} of {len(part):,} images in token cache {part.folder}"
        self.token_cache, self._class_names = cache, cache.class_names

    def train_dataloader(self) -> Loader:
        """Endless; has no length."""
        self.setup("fit")
        self.loaders["train"] = self.batches_from(self._first_step)
        return self.loaders["train"]

    def batches_from(self, step: Callable[[], int]) -> Loader:
        """This process's share of the training batches from `step()` on, called when the first batch is read."""
        rank, world_size = self._place()
        total, blocks = self._total("train"), self._blocks("train")
        order = TrainOrder(total, self.global_batch, self.seed, rank, world_size, step, *blocks)
        parts = Parts(order, self.micro_batch)
        if self.cache is None:
            processes = 1 if self.trainer is None else self.trainer.num_devices
            check_shared_memory(processes * self.num_workers, parts.most * 3 * self.image_size**2)
        return Loader(self.splits["train"], order, self.num_workers, self.max_skipped, parts)

    def val_dataloader(self) -> FiniteLoader | list[FiniteLoader]:
        """Each image once over all ranks; an empty list if there is no validation split."""
        if "val" not in self.splits:
            return []
        rank, world_size = self._place()
        share = max(1, self.global_batch // world_size)
        batch = min(self.micro_batch or share, share)
        order = ValidationOrder(self._total("val"), batch, rank, world_size, *self._blocks("val"))
        loader = FiniteLoader(self.splits["val"], order, self.num_workers, self.max_skipped)
        self.loaders["val"] = loader
        return loader

    def test_dataloader(self) -> FiniteLoader | list[FiniteLoader]:
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turns uint8 images into float32 in [0, 1] on the device, after the transfer."""
        image = batch.get("image")
        if image is not None and image.dtype == torch.uint8:
            return {**batch, "image": image.float() / 255}
        return batch

    @property
    def skipped(self) -> int:
        """Number of images that this process could not read so far, in all splits."""
        return sum(len(loader.skipped) for loader in self.loaders.values())

    @property
    def class_names(self) -> list[str]:
        return self._class_names

    @property
    def num_classes(self) -> int:
        return len(self._class_names)

    @property
    def description(self) -> str:
        """The training and validation data, with what is held out and what was passed over, in one line."""
        notes = self.found.notes if self.sources else []
        return "; ".join([*(f"{split}: {text}" for split, text in self.descriptions.items()), *map(str, notes)])

    @property
    def found(self) -> Found:
        """How the data was understood; known after `setup`."""
        why = "val_fraction 0 holds nothing out"
        if self.cache is None and self.train_split is not None:
            why = f"train_split {self.train_split} is read whole; val_split names one"
        missing = PassedOver("validation", 1, f"left out: there is no split for it, and {why}")
        return Found(self.cache or self.source, self.sources, *([] if "val" in self.sources else [missing]))

    def _total(self, split: Split) -> int:
        data = self.splits[split]
        return len(data.source) if isinstance(data, ImageBatches) else len(data.chosen)

    def _blocks(self, split: Split) -> tuple[Tensor | None, int | None]:
        """Blocks and window of a split's images."""
        data = self.splits[split]
        return (blocks_of(data.source), window_of(data.source)) if isinstance(data, ImageBatches) else (None, None)

    def _place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        return distributed.rank(), distributed.world_size()

    def _first_step(self) -> int:
        # read at each iteration: the trainer may restore its step after the loader is made
        return max(self.start_step, 0 if self.trainer is None else self.trainer.global_step)
