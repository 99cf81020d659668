"""The ViT decoder: causal with a prefix head in stage 1, bidirectional with buffer tokens in stage 2."""

import torch
from einops import rearrange
from torch import Tensor, nn

from alitok.common.random import Step
from alitok.models import seams
from alitok.models.transformer import Block, Init, init_weights, position_std


class PixelHead(nn.Module):
    """(B, h * w, width) -> (B, 3, h * patch, w * patch) in [0, 1]: linear, patches to pixels, 1x1 conv, sigmoid."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.linear = nn.Linear(width, 3 * patch_size**2)
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, rows: int) -> Tensor:
        x = rearrange(
            self.linear(x),
            "b (h w) (ph pw c) -> b c (h ph) (w pw)",
            h=rows,
            ph=self.patch_size,
            pw=self.patch_size,
        )
        return self.conv(x).sigmoid()


class Decoder(seams.Decoder):
    """Latents -> image; in stage 1 also the strip that the prefix tokens decode to.

    Args:
        image_size: height and width of the images in pixels.
        patch_size: side of a patch in pixels.
        num_prefix: K, prefix tokens before the image tokens.
        code_dim: D, channels of a latent.
        width, depth, heads: size of the transformer.
        causal: an output depends only on its own token and the ones before, buffer tokens included.
        buffer_tokens: learned tokens before the sequence (stage 1: one; stage 2: more).
        prefix_head: decode the prefix tokens to a strip, with a separate head.
        drop_prefix: remove the prefix tokens from the input (the paper's stage 2).
        init: initial weights, see `init_weights`; all except "paper" let small models on short schedules learn much
            sooner.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_prefix: int,
        code_dim: int,
        width: int,
        depth: int,
        heads: int,
        causal: bool,
        buffer_tokens: int = 1,
        prefix_head: bool = False,
        drop_prefix: bool = False,
        init: Init = "paper",
    ) -> None:
        super().__init__()
        if prefix_head and (drop_prefix or num_prefix == 0):
            raise ValueError("prefix_head needs prefix tokens: num_prefix > 0 and drop_prefix false")
        self.rows = image_size // patch_size
        self.image_tokens = self.rows**2
        self.num_prefix = num_prefix
        self.num_latents = num_prefix + self.image_tokens
        self.drop_prefix = drop_prefix
        inputs = self.image_tokens + (0 if drop_prefix else num_prefix)
        std = position_std(width, init)
        self.embed = nn.Linear(code_dim, width)
        self.buffer_tokens = nn.Parameter(torch.randn(buffer_tokens, width) * std)
        self.positions = nn.Parameter(torch.randn(buffer_tokens + inputs, width) * std)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, causal) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.image_head = PixelHead(width, patch_size)
        self.prefix_head = PixelHead(width, patch_size) if prefix_head else None
        init_weights(self, init)
        if init != "paper":  # identity: a random 3 x 3 color matrix would have to grow first
            for head in (self.image_head, self.prefix_head):
                if head is not None:
                    nn.init.dirac_(head.conv.weight)

    def forward(self, latents: Tensor, images: Tensor | None = None, step: Step | None = None) -> dict[str, Tensor]:
        """(B, N, D) -> {"image": (B, 3, H, W)}; with a prefix head also "prefix": (B, 3, patch, patch * K)."""
        x = self.sequence(latents)
        for block in self.blocks:
            x = block(x)
        x = self.norm_out(x[:, self.buffer_tokens.shape[0] :])
        outputs = {"image": self.image_head(self.at_image(x), self.rows)}
        if self.prefix_head is not None:
            outputs["prefix"] = self.prefix_head(x[:, : self.num_prefix], 1)
        return outputs

    def sequence(self, latents: Tensor) -> Tensor:
        """(B, N, D) -> the first block's input, which begins with the buffer tokens."""
        if self.drop_prefix:
            latents = latents[:, self.num_prefix :]
        x = self.embed(latents)
        front = self.buffer_tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        normed: Tensor = self.norm_in(torch.cat([front, x], dim=1) + self.positions)
        return normed

    def at_image(self, hidden: Tensor) -> Tensor:
        return hidden[:, -self.image_tokens :]
