"""What a tokenizer's features and ids are worth beyond reconstruction: linear probes, and how stable the ids are."""

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
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed("random encoder"))
        untrained: Any = build(tokenizer.block["init_args"]["encoder"]).eval().to(device)

    def features(pixels: Tensor) -> dict[str, Tensor]:
        latents, found = _with_norm(tokenizer.encoder, pixels)
        ids = tokenizer.ids_of(latents.float())
        codes = tokenizer.quantizer.lookup(ids)
        means = {"probe_encoder": found, "probe_decoder": _with_norm(tokenizer.decoder, codes, codes)[1]}
        means["probe_random_encoder"] = _with_norm(untrained, pixels)[1]
        if generator is not None:
            path = f"blocks.{max(0, len(generator.blocks) // 2 - 1)}"
            with tapped(generator, [path]) as seen:
                generator.hidden(ids, torch.full((len(ids),), generator.num_classes, device=device))
            means["probe_generator"] = seen[path][0]
        return {name: part.float().mean(1).cpu() for name, part in means.items()}

    seen, unseen = (
        [features(_pixels(part, device)) for part in images.split(BATCH)] for images, _ in (train, held_out)
    )
    found = {}
    for name in seen[0]:
        sets = [torch.cat([part[name] for part in parts]) for parts in (seen, unseen)]
        found[name] = ridge_accuracy(sets[0], train[1], sets[1], held_out[1], classes)[0]
    return found | stability(tokenizer, held_out[0])


def _with_norm(part: Any, given: Tensor, otherwise: Tensor | None = None) -> tuple[Any, Tensor]:
    """What a part makes, and its last norm's output (B, N, width); without one `otherwise`, or what it makes."""
    if "norm_out" not in dict(part.named_children()):
        made = part(given)
        return made, made if otherwise is None else otherwise
    with tapped(part, ["norm_out"]) as seen:
        made = part(given)
    return made, seen["norm_out"][0]


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
