"""A tokenizer's features and ids beyond reconstruction: linear probes, and the stability of ids."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alitok.common.build import build
from alitok.common.distributed import all_or_none, all_sum, rank, world_size
from alitok.common.random import derive_seed, stream
from alitok.evaluation.ridge import ridge_accuracy
from alitok.training.records import tapped

BATCH = 100
NOISE = 2 / 255  # standard deviation, on pixels in [0, 1]
Images = tuple[Tensor, Tensor]  # uint8 (N, 3, H, W), labels (N,)


@torch.inference_mode()
def measure_features(tokenizer: Any, train: Images, held_out: Images, generator: Any = None) -> dict[str, float]:
    """Linear probes on token means of encoder, decoder and generator features, and shares of ids that stay the same.

    Processes share the images; the numbers are equal on each. A collective.

    Returns:
        accuracies "probe_encoder" and "probe_decoder" (on the output of the last norm; on latents if there is no norm,
        or the decoder is generative), "probe_random_encoder" (the same encoder with random weights, as a baseline) and
        "probe_generator" (after half of its blocks, without a class); shares "ids_same_shifted" and "ids_same_noisy".
    """
    device = next(tokenizer.parameters()).device
    classes = int(max(train[1].max(), held_out[1].max())) + 1
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("random encoder"))
        untrained: Any = build(tokenizer.block["init_args"]["encoder"]).eval().to(device)

    def features(number: int, part: Tensor) -> dict[str, Tensor]:
        pixels = _pixels(part, device)
        latents, found = _with_norm(tokenizer.encoder, pixels)
        ids = tokenizer.ids_of(latents.float())
        codes = tokenizer.quantizer.lookup(ids)
        # a generative decoder would integrate or draw every picture, so the codes' latents are used
        decoded = codes if tokenizer.decoder.generative else _with_norm(tokenizer.decoder, codes, codes)[1]
        means = {"probe_encoder": found, "probe_decoder": decoded}
        means["probe_random_encoder"] = _with_norm(untrained, pixels)[1]
        if generator is not None:
            path = f"blocks.{max(0, len(generator.blocks) // 2 - 1)}"
            with tapped(generator, [path]) as seen:
                generator.hidden(ids, torch.full((len(ids),), generator.num_classes, device=device))
            means["probe_generator"] = seen[path][0]
        return {name: part.float().mean(1).cpu() for name, part in means.items()}

    seen, unseen = (_merged(images, features) for images, _ in (train, held_out))
    found = {name: ridge_accuracy(rows, train[1], unseen[name], held_out[1], classes)[0] for name, rows in seen.items()}
    return found | stability(tokenizer, held_out[0])


def _with_norm(part: Any, given: Tensor, otherwise: Tensor | None = None) -> tuple[Any, Tensor]:
    """A part's output, and its last norm's output (B, N, width); without a norm `otherwise`, or if None the output."""
    if "norm_out" not in dict(part.named_children()):
        made = part(given)
        return made, made if otherwise is None else otherwise
    with tapped(part, ["norm_out"]) as seen:
        made = part(given)
    return made, seen["norm_out"][0]


@torch.inference_mode()
def stability(tokenizer: Any, images: Tensor) -> dict[str, float]:
    """Shares of ids that stay the same if the picture is shifted right by a pixel, or gets noise of 2 gray levels.

    A collective.
    """
    device = next(tokenizer.parameters()).device

    def same(number: int, part: Tensor) -> dict[str, Tensor]:
        pixels = _pixels(part, device)
        noise = torch.randn(pixels.shape, generator=stream("id noise", number)).to(device)
        changed = {
            "ids_same_shifted": F.pad(pixels, (1, 0, 0, 0), mode="replicate")[..., :-1],
            "ids_same_noisy": (pixels + NOISE * noise).clamp(0, 1),
        }
        ids = tokenizer.encode(pixels)
        return {
            name: (tokenizer.encode(other) == ids).float().flatten(1).mean(1).cpu() for name, other in changed.items()
        }

    return {name: float(rows.mean()) for name, rows in _merged(images, same).items()}


def _merged(images: Tensor, make: Callable[[int, Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Results of `make(number, part)` for each batch, merged over all images, by name. A collective.

    Process b mod P gets batch b whole, so that the networks see the same batches with any number of processes.
    """
    parts = images.split(BATCH)
    own = range(rank(), len(parts), world_size())
    whole: dict[str, Tensor] = {}
    with all_or_none():
        for number in own or [0]:  # a process without a batch needs the shapes
            for name, rows in make(number, parts[number]).items():
                place = whole.setdefault(name, rows.new_zeros(len(images), *rows.shape[1:]))
                if number in own:
                    place[BATCH * number :][: len(rows)] = rows
    return {name: all_sum(rows) for name, rows in whole.items()}


def _pixels(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).float() / 255
