"""The loop that draws tokens."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.models.generator import Generator
from alitok.sampling.cache import KeyValueCache
from alitok.sampling.guidance import Guidance, PowerCosine


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draws from softmax(logits) by inverting its cumulative distribution.

    Args:
        logits: (B, V).
        uniform: (B,) in [0, 1): one random number an image and token, so that an image's stream is N numbers long.

    Returns:
        (B,) int64.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    target = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)


def image_uniforms(seed: int, indices: Sequence[int], num_tokens: int) -> Tensor:
    """(B, N) float64 uniform numbers, row b a function of the seed and the image's index alone."""
    return torch.stack(
        [torch.rand(num_tokens, dtype=torch.float64, generator=stream(seed, "image", index)) for index in indices]
    )


@torch.inference_mode()
def generate(
    generator: Generator,
    labels: Tensor,
    guidance: float | Guidance | None = None,
    power: float | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Draws token ids.

    Args:
        generator: in eval mode.
        labels: (B,) int64 in [0, C].
        guidance: scale of power-cosine guidance, 0 for none, or a guidance rule; None for what the generator's card
            recommends (no guidance where there is no card).
        power: of power-cosine guidance; None for the card's (1 where there is none).
        temperature: logits are divided by it.
        seed: with `indices` it decides each image's random numbers.
        indices: of the images in the whole set, default 0..B-1: image i is the same in any batch.
        on_step: called with the step's number after each step.

    Returns:
        ids (B, N) int64.

    Raises:
        BadInput: a label outside [0, C], a temperature that is not positive.
    """
    if temperature <= 0:
        raise BadInput(f"temperature must be above 0, not {temperature}.")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= generator.num_classes:
        raise BadInput(f"labels must lie in 0..{generator.num_classes} ({generator.num_classes} = no class).")
    rule = choose_guidance(generator, guidance, power)
    device = generator.output.weight.device
    labels = labels.to(device)
    batch, steps = len(labels), generator.num_tokens
    uniforms = image_uniforms(seed, range(batch) if indices is None else indices, steps).to(device)
    if rule is not None:
        labels = torch.cat([labels, torch.full_like(labels, generator.num_classes)])
    dtype = generator.output.weight.dtype
    cache = KeyValueCache(len(generator.blocks), len(labels), generator.heads, steps, generator.head_dim, device, dtype)
    ids = torch.empty(batch, steps, dtype=torch.int64, device=device)
    x = generator.embed_labels(labels)
    for step in range(steps):
        logits = generator.step(x, step, cache).float()
        if rule is not None:
            conditional, unconditional = logits.chunk(2)
            logits = rule(conditional, unconditional, step, steps)
        ids[:, step] = token = draw(logits / temperature, uniforms[:, step])
        x = generator.embed_tokens(token[:, None])
        if rule is not None:
            x = x.repeat(2, 1, 1)
        if on_step is not None:
            on_step(step)
    return ids


def choose_guidance(generator: Generator, guidance: float | Guidance | None, power: float | None) -> Guidance | None:
    """The rule for `generate`'s arguments: None = no guidance."""
    card = getattr(generator, "card", None) or {}
    if guidance is None:
        guidance = card.get("guidance") or 0.0
    if not isinstance(guidance, int | float):
        return guidance
    if guidance == 0:
        return None
    return PowerCosine(float(guidance), float(card.get("power") or 1.0) if power is None else power)
