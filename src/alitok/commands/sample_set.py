"""Drawing a set of images to disk: what decides it, and the work shared over processes and resumed after a kill."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alitok import __version__
from alitok.artifacts.digest import module_digest
from alitok.commands.image_specs import counter
from alitok.common.distributed import all_or_none, all_stack, group_alone_in, rank, world_size
from alitok.common.draw import Draw
from alitok.evaluation.quantise import to_uint8
from alitok.models.generator import Generator
from alitok.models.tokenizer import Tokenizer
from alitok.sampling.guidance import guidance_of
from alitok.sampling.images import ImageSampler, largest_batch
from alitok.sampling.sets import SampleSet

CYCLING = "cycling"


def class_names(generator: Generator) -> list[str]:
    """Names of the generator's classes, their numbers where the card has none."""
    return generator.card.get("class_names") or [str(index) for index in range(generator.num_classes)]


def set_settings(
    generator: Generator,
    tokenizer: Tokenizer,
    names: tuple[str, str],
    draw: Draw,
    count: int,
    classes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """All that decides a set of images, as it is written beside them.

    Args:
        names: of the generator and of the tokenizer.
        classes: of each image; None = cycling through all.

    Raises:
        BadInput: an unknown schedule.
    """
    guidance_of(draw)
    known = class_names(generator)
    return {
        "count": count,
        "generator": {"name": names[0], "digest": generator.card["digest"]},
        "tokenizer": {
            "name": names[1],
            "digest": tokenizer.card["digest"],
            "decoder": module_digest(tokenizer.decoder),  # the digest before it is that of encoder and codes
        },
        **draw.record(),
        "classes": CYCLING if classes is None else list(classes),
        "num_classes": len(known),
        "class_names": known,
        "quantisation": "truncated",
        "image_size": tokenizer.image_size,
        "alitok": __version__,
    }


def draw_set(
    generator: Generator,
    tokenizer: Tokenizer,
    out: Path,
    settings: dict[str, Any],
    batch: int | None = None,
    grid: Callable[[Tensor], None] | None = None,
) -> bool:
    """Draws the images of `settings` (of `set_settings`) to `out`, each process its share. A collective.

    What an earlier run of the same settings left is kept; a batch is saved while the next is drawn.

    Args:
        batch: images drawn together; None = the most that fit.
        grid: as `SampleSet.finish`.

    Returns:
        False where the set was there already.

    Raises:
        BadInput: as `SampleSet`, on every process.
    """
    images = SampleSet(out, settings)
    if images.done():
        return False
    draw = Draw.of(settings)
    if batch is None:
        most = common_batch(generator, tokenizer, draw)
        batch = min(most, -(-settings["count"] // world_size()))
    with group_alone_in(images.partial):
        device = generator.embeddings.weight.device
        with all_or_none():
            if rank() == 0:
                kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
                images.start({"batch": batch, "device": kind})
        tokens = draw.keep or generator.num_tokens
        runs = images.missing(batch)
        with all_or_none():  # every process has looked before one writes
            mine = runs[rank() :: world_size()]
        with all_or_none(), counter("Sampling", len(mine) * tokens) as advance, ThreadPoolExecutor(1) as saver:
            sampler = ImageSampler(generator, tokenizer, draw)
            total = settings["num_classes"]
            classes = settings["classes"]
            labels = [[index % total if classes == CYCLING else classes[index] for index in run] for run in mine]
            saving: Future[None] | None = None
            drawn = sampler.sample(zip(mine, labels, strict=True), lambda step: advance(1), batch)
            for indices, _, pixels in drawn:
                if saving is not None:
                    saving.result()
                saving = saver.submit(images.write, indices[0], to_uint8(pixels))
            if saving is not None:
                saving.result()
        with all_or_none():
            if rank() == 0:
                images.finish(grid)
    return True


def common_batch(generator: Generator, tokenizer: Tokenizer, draw: Draw) -> int:
    """The most images that fit on every process, equal on each, as the shares are cut by it. A collective."""
    device = generator.embeddings.weight.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    most = largest_batch(generator, tokenizer, draw, free)
    return int(all_stack(torch.tensor(most)).min())
