"""The bidirectional ViT encoder: images -> latents."""

import torch
from einops import rearrange
from torch import Tensor, nn

from alitok.common.random import Step
from alitok.models import seams
from alitok.models.transformer import Block, Init, init_weights, position_std


class Encoder(seams.Encoder):
    """A ViT over [patches ; learned latent tokens] that keeps the latents (AliTok, section 3; TiTok's wiring).

    Args:
        image_size: height and width of the images in pixels.
        patch_size: side of a patch in pixels.
        num_latents: N, prefix tokens included.
        code_dim: D, channels of a latent.
        width, depth, heads: size of the transformer.
        causal: attention over [patch 0, latent 0, patch 1, latent 1, ...] is causal, so that latent i does not depend
            on patches after i (AliTok's ablation). The paper does not describe its causal encoder; this order needs no
            special mask. `num_latents` must be the number of patches: a prefix latent before the first patch would see
            nothing.
        init: initial weights, see `init_weights`. "fan-in" lets small models on short schedules learn sooner; "local"
            starts each latent as a query for one patch, and they learn sooner still.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_latents: int,
        code_dim: int,
        width: int,
        depth: int,
        heads: int,
        init: Init = "paper",
        causal: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} does not divide into patches of {patch_size}")
        self.image_size = image_size
        self.num_latents = num_latents
        std = position_std(width, init)
        patches = (image_size // patch_size) ** 2
        if causal and num_latents != patches:
            raise ValueError(f"a causal encoder has no prefix: num_latents must be {patches}, not {num_latents}")
        self.causal = causal
        self.patch_embed = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.patch_positions = nn.Parameter(torch.randn(patches, width) * std)
        self.latent_tokens = nn.Parameter(torch.randn(num_latents, width) * std)
        self.latent_positions = nn.Parameter(torch.randn(num_latents, width) * std)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, causal) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.to_code = nn.Linear(width, code_dim)
        init_weights(self, init)
        if init != "paper":
            self._emphasise_patches()
        if init == "local":
            self._start_local(patches)

    @torch.no_grad()
    def _emphasise_patches(self) -> None:
        """Embeds three times the patches' difference from gray.

        A patch's content then dominates what all pictures share, and the positions.
        """
        assert self.patch_embed.bias is not None
        self.patch_embed.weight.mul_(3)
        self.patch_embed.bias.copy_(-0.5 * self.patch_embed.weight.sum((1, 2, 3)))

    @torch.no_grad()
    def _start_local(self, patches: int) -> None:
        """Makes each latent a query for one patch: it gets the patch's position, and keys equal queries.

        Image latents get their own patch, prefix latents the first patches. A model takes longest to learn which latent
        reads which patch; here it starts with that, and training can change it. If there are fewer latents than
        patches, the latents keep random positions.
        """
        prefix = self.num_latents - patches
        if prefix > patches:
            raise ValueError(f"num_latents must be at most twice the {patches} patches, not {self.num_latents}")
        self.latent_tokens.mul_(0.1)
        if prefix >= 0:
            self.latent_positions[prefix:] = self.patch_positions
            self.latent_positions[:prefix] = self.patch_positions[:prefix]
        for block in self.blocks:
            assert isinstance(block, Block)
            query, key, _ = block.attention.qkv.weight.chunk(3)
            key.copy_(query)

    def forward(self, images: Tensor, step: Step | None = None) -> Tensor:
        """(B, 3, image_size, image_size) in [0, 1] -> (B, N, D). If causal, [:, i] depends only on patches 0..i."""
        patches = rearrange(self.patch_embed(images), "b d h w -> b (h w) d") + self.patch_positions
        latents = (self.latent_tokens + self.latent_positions).expand(images.shape[0], -1, -1)
        latents = latents.to(patches.dtype)
        if self.causal:
            x = rearrange(torch.stack([patches, latents], dim=2), "b n pair d -> b (n pair) d")
        else:
            x = torch.cat([patches, latents], dim=1)
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        return self.to_code(self.norm_out(x[:, 1::2] if self.causal else x[:, -self.num_latents :]))
