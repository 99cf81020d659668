"""FlexTok's decoder: a transformer that integrates a flow from noise to pixels, given the tokens."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.ideas.shared.flow import Flow, TimeEmbedding, TimeLaw, TokenSchedule
from alitok.ideas.shared.flow_sampler import FlowSampler
from alitok.models.transformer import Init, attend, init_weights, position_std


class FlowBlock(nn.Module):
    """Attention with normed queries and keys, then SwiGLU of 4 x width; the time shifts, scales and gates both.

    Patches and latents have separate shifts, scales and gates. These start at zero, so that the block starts as the
    identity. Only the layer that makes them has a bias.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = nn.LayerNorm(width // heads, bias=False)
        self.k_norm = nn.LayerNorm(width // heads, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 8 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.modulation = nn.Linear(width, 12 * width)

    def forward(self, x: Tensor, time: Tensor, patches: int) -> Tensor:
        """x (B, patches + k, width), time (B, width) after its SiLU."""
        kinds = (patches, x.shape[1] - patches)
        gate1, gate2, shift1, scale1, shift2, scale2 = self.modulation(time).unflatten(1, (2, 6, -1)).unbind(2)
        hidden = scaled(self.norm1(x), kinds, 1 + scale1, shift1)
        q, k, v = (rearrange(part, "b t (h d) -> b h t d", h=self.heads) for part in self.qkv(hidden).chunk(3, -1))
        seen = attend(self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v, causal=False)
        x = x + scaled(self.proj(rearrange(seen, "b h t d -> b t (h d)")), kinds, gate1)
        gate, up = self.up(scaled(self.norm2(x), kinds, 1 + scale2, shift2)).chunk(2, -1)
        return x + scaled(self.down(F.silu(gate) * up), kinds, gate2)


def scaled(x: Tensor, kinds: tuple[int, int], scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """x scale + shift; scale and shift (B, 2, width) are for the patches and for the latents after them."""
    parts = [part * scale[:, kind, None] for kind, part in enumerate(x.split(kinds, 1))]
    if shift is not None:
        parts = [part + shift[:, kind, None] for kind, part in enumerate(parts)]
    return torch.cat(parts, 1)


class FlowDecoder(Flow):
    """Full attention over [noised patches ; latents] (FlexTok, arXiv 2502.13967), on pixels instead of a VAE's latents.

    Args:
        image_size: height and width of the images in pixels.
        patch_size: side of a patch in pixels.
        num_latents: N, the largest number of latents.
        code_dim: D, channels of a latent.
        width, depth, heads: size of the transformer; FlexTok has width 64 x depth and heads of 64 channels.
        init: initialization of the weights, see `init_weights`.
        times, sampler, scale, null: see `Flow`.
        tokens: which latents are visible at which time; a learned vector replaces the others. None for all.

    Raises:
        BadInput: the patch size does not divide the image, or the heads the width.
    """

    any_length = True

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
        times: TimeLaw | None = None,
        sampler: FlowSampler | None = None,
        scale: float = 1.0,
        null: float = 0.0,
        tokens: TokenSchedule | None = None,
    ) -> None:
        super().__init__(image_size, code_dim, times, sampler, scale, null)
        if image_size % patch_size or width % heads:
            raise BadInput(
                f"FlowDecoder: {image_size} pixels must divide into patches of {patch_size}, and width {width} into"
                f" {heads} heads."
            )
        self.patch_size = patch_size
        self.patches = (image_size // patch_size) ** 2
        self.length = self.patches + num_latents
        std = position_std(width, init)
        self.patch_embed = nn.Linear(3 * patch_size**2, width)
        self.patch_positions = nn.Parameter(torch.randn(self.patches, width) * std)
        self.embed = nn.Linear(code_dim, width)
        self.latent_positions = nn.Parameter(torch.randn(num_latents, width) * std)
        self.tokens = tokens
        self.absent = None if tokens is None else nn.Parameter(torch.randn(width) * std)
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(FlowBlock(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 3 * patch_size**2)
        init_weights(self, init)
        for layer in (self.modulation, self.head, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(layer.weight)  # type: ignore[union-attr, arg-type]

    def condition(self, latents: Tensor) -> Tensor:
        """(B, k, D), the first k <= N latents -> (B, k, width).

        Raises:
            BadInput: more than N latents.
        """
        count, most = latents.shape[1], len(self.latent_positions)
        if count > most:
            raise BadInput(f"The flow decoder was made for {most} latents and is given {count}; set its num_latents.")
        embedded: Tensor = self.embed(latents)
        return embedded + self.latent_positions[:count]

    def velocity(self, noised: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        size, count = self.patch_size, condition.shape[1]
        if self.tokens is not None and self.absent is not None:
            visible = self.tokens.visible(t, len(self.latent_positions))[:, :count, None]
            condition = torch.where(visible, condition, self.absent + self.latent_positions[:count])
        patches = rearrange(noised, "b c (h p) (w q) -> b (h w) (p q c)", p=size, q=size)
        x = torch.cat([self.patch_embed(patches) + self.patch_positions, condition], dim=1)
        time = F.silu(self.time(t))
        for block in self.blocks:
            x = block(x, time, self.patches)
        shift, scale = self.modulation(time)[:, None].chunk(2, -1)
        out = self.head(self.norm_out(self.at_image(x)) * (1 + scale) + shift)
        rows = noised.shape[2] // size
        return rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=size, q=size)

    def at_image(self, hidden: Tensor) -> Tensor:
        return hidden[:, : self.patches]
