"""Reads uint8 crops from a source."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alitok.common.progress import bar
from alitok.data.pictures import UnreadableImage, crop
from alitok.data.sources import Source


class Skip(NamedTuple):
    """An image of a source that could not be read."""

    image: int
    reason: str


class Crops(NamedTuple):
    """Center crops (B, 3, size, size) uint8 and their labels (B,) int64, in the order of the source."""

    images: Tensor
    labels: Tensor
    skipped: list[Skip]


def read_crops(
    source: Source,
    indices: Sequence[int],
    size: int,
    skip: bool = False,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Crops:
    """Center crops of these images of a source.

    Args:
        skip: leave out images that cannot be read, instead of raising.
        progress: wraps the indices in a progress bar.

    Raises:
        UnreadableImage: an image cannot be read.
    """
    images = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
    labels: list[int] = []
    skipped: list[Skip] = []
    for index in progress(indices):
        try:
            picture, label = source[index]
        except UnreadableImage as error:
            if not skip:
                raise
            skipped.append(Skip(index, str(error)))
            continue
        images[len(labels)] = crop(picture, size)
        labels.append(label)
    return Crops(images[: len(labels)], torch.tensor(labels, dtype=torch.int64), skipped)


def read_all(source: Source, size: int) -> tuple[Tensor, Tensor]:
    """Images and labels of the `Crops` of a whole source, with a progress bar.

    Raises:
        UnreadableImage: an image cannot be read.
    """
    crops = read_crops(source, range(len(source)), size, progress=bar("Pictures"))
    return crops.images, crops.labels
