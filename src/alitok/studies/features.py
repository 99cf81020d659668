"""What a tokenizer's features and ids are worth beyond reconstruction: linear probes, and how stable the ids are."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alitok.common.build import build
from alitok.common.random import derive_seed, stream
from alitok.evaluation.ridge import ridge_accuracy
from alitok.training.records import tapped

BATCH = 100
NOISE = 2 / 255  # standard deviation, on pixels in [0, 1]
Images = tuple[Tensor, Tensor]  # uint8 (N, 3, H, W), labels (N,)


@torch.inference_mode()
def measure_features(tokenizer: Any, train: Images, held_out: Images, generator: Any = None) -> dict[str, float]:
    """Linear probes of encoder, decoder and generator, each a mean over tokens, and shares of ids that stay.

    Returns:
        accuracies "probe_encoder" and "probe_decoder" (of their last norms, if they have one, else of the latents),
        "probe_random_encoder" (the same encoder with random weights, which a probe must beat) and "probe_generator"
        (after half of its blocks, without a class); shares "ids_same_shifted" and "ids_same_noisy".
    """
    device = next(tokenizer.parameters()).device
    classes = int(max(train[1].max(), held_out[1].max())) + 1

    def probe(features: Callable[[Tensor], Tensor]) -> float:
        seen, unseen = (
            torch.cat([features(_pixels(part, device)).float().cpu() for part in images.split(BATCH)])
            for images, _ in (train, held_out)
        )
        return ridge_accuracy(seen, train[1], unseen, held_out[1], classes)[0]

    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("random encoder"))
        block = tokenizer.block["init_args"]["encoder"]
        untrained: Any = build(block).eval().to(device)

    def encoder(network: Any) -> Callable[[Tensor], Tensor]:
        def features(pixels: Tensor) -> Tensor:
            if "norm_out" not in dict(network.named_children()):
                return network(pixels).float().mean(1)
            with tapped(network, ["norm_out"]) as seen:
                network(pixels)
            return seen["norm_out"][0].mean(1)

        return features

    def decoder(pixels: Tensor) -> Tensor:
        latents = tokenizer.quantizer.lookup(tokenizer.encode(pixels))
        if "norm_out" not in dict(tokenizer.decoder.named_children()):
            return latents.mean(1)
        with tapped(tokenizer.decoder, ["norm_out"]) as seen:
            tokenizer.decoder(latents)
        return seen["norm_out"][0].mean(1)

    def generated(pixels: Tensor) -> Tensor:
        ids = tokenizer.encode(pixels)
        path = f"blocks.{len(generator.blocks) // 2 - 1}" if len(generator.blocks) > 1 else "blocks.0"
        with tapped(generator, [path]) as seen:
            generator.hidden(ids, torch.full((len(ids),), generator.num_classes, device=device))
        return seen[path][0].mean(1)

    found = {
        "probe_encoder": probe(encoder(tokenizer.encoder)),
        "probe_decoder": probe(decoder),
        "probe_random_encoder": probe(encoder(untrained)),
    }
    if generator is not None:
        found["probe_generator"] = probe(generated)
    return found | stability(tokenizer, held_out[0])


@torch.inference_mode()
def stability(tokenizer: Any, images: Tensor) -> dict[str, float]:
    """Shares of ids that stay if the picture is shifted by a pixel to the right, or gets noise of 2 grey levels."""
    device = next(tokenizer.parameters()).device
    same: dict[str, list[Tensor]] = {"ids_same_shifted": [], "ids_same_noisy": []}
    for number, part in enumerate(images.split(BATCH)):
        pixels = _pixels(part, device)
        noise = torch.randn(pixels.shape, generator=stream("id noise", number)).to(device)
        changed = {
            "ids_same_shifted": F.pad(pixels, (1, 0, 0, 0), mode="replicate")[..., :-1],
            "ids_same_noisy": (pixels + NOISE * noise).clamp(0, 1),
        }
        ids = tokenizer.encode(pixels)
        for name, other in changed.items():
            same[name].append((tokenizer.encode(other) == ids).float().flatten(1).mean(1).cpu())
    return {name: float(torch.cat(parts).mean()) for name, parts in same.items()}


def _pixels(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).float() / 255
