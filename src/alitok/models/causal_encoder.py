"""The causal ViT encoder: the counter-example, in which token i never sees what comes after patch i."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from alitok.common.random import Step
from alitok.models.encoder import Encoder


class CausalEncoder(Encoder):
    """The encoder with causal attention over [patch 0, latent 0, patch 1, latent 1, ...] (AliTok, ablation).

    Latent i sees the patches and latents 0..i, patch i the patches 0..i and the latents before it. The paper does not
    say how its causal encoder is wired; this order needs no mask of its own, and every latent keeps its patch. There
    are no prefix latents: in front of the first patch they would see nothing.

    Args:
        args, kwargs: of `Encoder`; `num_latents` must be the number of patches.

    Raises:
        ValueError: prefix latents.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.num_latents != len(self.patch_positions):
            patches = len(self.patch_positions)
            raise ValueError(f"a causal encoder has no prefix: num_latents must be {patches}, not {self.num_latents}")
        block: Any
        for block in self.blocks:
            block.attention.causal = True

    def forward(self, images: Tensor, step: Step | None = None) -> Tensor:
        """(B, 3, image_size, image_size) in [0, 1] -> (B, N, D), [:, i] a function of patches 0..i."""
        patches = rearrange(self.patch_embed(images), "b d h w -> b (h w) d") + self.patch_positions
        latents = (self.latent_tokens + self.latent_positions).expand(images.shape[0], -1, -1)
        pairs = torch.stack([patches, latents.to(patches.dtype)], dim=2)
        x = self.norm_in(rearrange(pairs, "b n pair d -> b (n pair) d"))
        for block in self.blocks:
            x = block(x)
        return self.to_code(self.norm_out(x[:, 1::2]))
