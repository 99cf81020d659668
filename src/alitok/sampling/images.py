"""From labels to pictures: tokens drawn in batches and decoded."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from alitok.models.generator import Generator
from alitok.models.tokenizer import Tokenizer
from alitok.sampling.generate import generate
from alitok.sampling.guidance import Guidance


def sample_images(
    generator: Generator,
    tokenizer: Tokenizer,
    labels: Sequence[int],
    indices: Sequence[int] | None = None,
    batch: int = 50,
    guidance: float | Guidance | None = None,
    power: float | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Draws and decodes images, a batch at a time.

    Args:
        labels: of each image, in [0, C].
        indices: of the images in the whole set (default 0, 1, ...); with the seed they decide the random numbers.
        batch: images drawn together.
        guidance, power, temperature, seed, on_step: as `generate`.

    Yields:
        indices of the batch, ids (B, N) int64, images (B, 3, H, W) float32 in [0, 1].

    Raises:
        BadInput: as `generate`.
    """
    indices = range(len(labels)) if indices is None else indices
    for start in range(0, len(labels), batch):
        chosen = list(indices[start : start + batch])
        ids = generate(
            generator,
            torch.tensor(list(labels[start : start + batch])),
            guidance=guidance,
            power=power,
            temperature=temperature,
            seed=seed,
            indices=chosen,
            on_step=on_step,
        )
        yield chosen, ids, tokenizer.decode(ids)
