"""WeTok's generative decoder: it also gets noise, so it can draw what the latents leave open."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import send
from alitok.common.random import Step, stream, streams_by_content
from alitok.models.decoder import Decoder


class NoisyEmbed(nn.Module):
    """A linear layer of latents and noise; at the start it equals the layer that it replaces.

    Args:
        linear: the replaced layer of the latents. Its parameters keep their names.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.noise_weight = nn.Parameter(torch.zeros_like(linear.weight))

    def forward(self, both: Tensor) -> Tensor:
        """(B, k, 2 D), latents and noise -> (B, k, width)."""
        latents, noise = both.chunk(2, -1)
        return F.linear(latents, self.weight, self.bias) + F.linear(noise, self.noise_weight)


class NoiseDecoder(Decoder):
    """`Decoder` whose input is [z ; n] with n ~ N(0, 1) of z's shape (WeTok, arXiv 2508.05599).

    The weights of n start at zero, so that at first it equals the decoder from which it starts, bit for bit. With an
    adversarial loss it learns to draw what z leaves open. In a step the noise depends on the run's seed, the step and
    the image's place in the global batch; in `decode` on the seed and the image's index.

    Args: as for `Decoder`.
    """

    generative = True
    embed: Any  # the paper convolves [z ; n], which is the sum of two linear layers

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.embed = NoisyEmbed(self.embed)

    def forward(self, latents: Tensor, images: Tensor | None = None, step: Step | None = None) -> dict[str, Tensor]:
        """As `Decoder`. Without a step, the noise depends on an image's pixels, or on its place if none are given."""
        if step is not None:
            return self._with(latents, (step.stream("noise", place) for place in step.places))
        if images is not None:
            return self._with(latents, streams_by_content("noise", images))
        return self._with(latents, (stream(0, "noise", index) for index in range(len(latents))))

    def decode(self, latents: Tensor, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
        indices = range(len(latents)) if indices is None else indices
        return self._with(latents, (stream(seed, "noise", index) for index in indices))["image"]

    def _with(self, latents: Tensor, generators: Iterable[torch.Generator]) -> dict[str, Tensor]:
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
        return super().forward(torch.cat([latents, send(noise, latents.device).to(latents.dtype)], dim=-1))
