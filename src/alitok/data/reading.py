"""From a source to uint8 crops."""

import torch

from alitok.common.progress import bar
from alitok.data.pictures import crop
from alitok.data.sources import Source


def read_all(source: Source, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre crops of all pictures of a source, (B, 3, size, size) uint8, and labels (B,)."""
    images = torch.empty(len(source), 3, size, size, dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.int64)
    for index in bar("Pictures")(range(len(source))):
        picture, label = source[index]
        images[index], labels[index] = crop(picture, size), label
    return images, labels
