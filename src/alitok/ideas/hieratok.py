"""HieraTok: tokens of several scales, coarse to fine; encoder and decoder are causal between scales."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.decoder import Decoder
from alitok.models.encoder import Encoder
from alitok.models.transformer import Attention


def scale_sides(rows: int, sides: Sequence[int] | None) -> list[int]:
    """Tokens along a side of each scale: as given, or the powers of two below `rows` and then `rows`.

    Raises:
        BadInput: they do not rise, or do not end with the grid of patches.
    """
    if sides is None:
        return [2**power for power in range(rows.bit_length()) if 2**power < rows] + [rows]
    rising = [0, *sides]
    if any(low >= high for low, high in pairwise(rising)) or rising[-1] != rows:
        raise BadInput(f"scales must rise from 1 or more to the {rows} rows of patches, not {list(sides)}.")
    return list(sides)


def check_given(arguments: Mapping[str, Any], name: str, count: int) -> None:
    """Raise BadInput if the arguments give a number of tokens that differs from the scales'."""
    if arguments.get(name, count) != count:
        raise BadInput(f"With these scales {name} is {count}, not {arguments[name]}: leave it out, or change scales.")


class ScaleAttention(nn.Module):
    """Attention in which queries see their own scale and those before it.

    Args:
        attention: plain attention whose layers it takes over.
        ends: end of each scale in the sequence.
    """

    def __init__(self, attention: Attention, ends: Sequence[int]) -> None:
        super().__init__()
        self.heads = attention.heads
        self.qkv, self.proj = attention.qkv, attention.proj
        self.ends = list(ends)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(part, "b t (h d) -> b h t d", h=self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        # one product per scale instead of a mask: no hidden scores are computed
        parts = [
            F.scaled_dot_product_attention(q[:, :, first:last], k[:, :, :last], v[:, :, :last])
            for first, last in pairwise([0, *self.ends])
        ]
        return self.proj(rearrange(torch.cat(parts, dim=2), "b h t d -> b t (h d)"))


class HieraEncoder(Encoder):
    """`Encoder` that pools its map of patches to several scales after half of its blocks.

    The first half of the blocks reads all patches; the other half reads the scales, coarse to fine, with
    `ScaleAttention` (HieraTok, arXiv 2509.23736). N is the sum of the squared sides. The paper does not say where it
    pools and masks.

    Args:
        image_size, patch_size, arguments: as for `Encoder`, without num_latents and causal.
        scales: tokens along a side of each scale; None for 1, 2, 4, ... up to the grid of patches.
    """

    def __init__(self, image_size: int, patch_size: int, scales: Sequence[int] | None = None, **arguments: Any) -> None:
        self.rows = image_size // patch_size
        self.scales = scale_sides(self.rows, scales)
        ends = list(accumulate(side * side for side in self.scales))
        check_given(arguments, "num_latents", ends[-1])
        super().__init__(image_size, patch_size, **{**arguments, "num_latents": ends[-1], "causal": False})
        self.full_depth = len(self.blocks) // 2
        for block in self.blocks[self.full_depth :]:
            block.attention = ScaleAttention(block.attention, ends)  # type: ignore[arg-type]
        with torch.no_grad():  # a token of a coarse scale starts with the mean position of its patches
            self.latent_positions.copy_(self.pooled(self.patch_positions[None])[0])

    def pooled(self, x: Tensor) -> Tensor:
        """(B, rows * rows, width) -> (B, N, width), the means over the patches of each token."""
        grid = rearrange(x, "b (h w) d -> b d h w", h=self.rows)
        return torch.cat([F.adaptive_avg_pool2d(grid, side).flatten(2).mT for side in self.scales], dim=1)

    def forward(self, images: Tensor, step: Step | None = None) -> Tensor:
        """(B, 3, image_size, image_size) in [0, 1] -> (B, N, D), coarse scales first."""
        patches = rearrange(self.patch_embed(images), "b d h w -> b (h w) d") + self.patch_positions
        x = self.norm_in(patches)
        for number, block in enumerate(self.blocks):
            if number == self.full_depth:
                x = self.pooled(x) + (self.latent_tokens + self.latent_positions).to(x.dtype)
            x = block(x)
        return self.to_code(self.norm_out(x))


class HieraDecoder(Decoder):
    """`Decoder` of several scales with `ScaleAttention`; the image is read at the last one.

    `Decoder` gets the coarse scales as prefix tokens. The buffer tokens belong to the first scale.

    Args:
        image_size, patch_size, arguments: as for `Decoder`, without num_prefix and causal.
        scales: as for `HieraEncoder`.
    """

    def __init__(self, image_size: int, patch_size: int, scales: Sequence[int] | None = None, **arguments: Any) -> None:
        tokens = [side * side for side in scale_sides(image_size // patch_size, scales)]
        check_given(arguments, "num_prefix", sum(tokens[:-1]))
        fixed = {"num_prefix": sum(tokens[:-1]), "causal": False, "drop_prefix": False, "prefix_head": False}
        super().__init__(image_size, patch_size, **{**arguments, **fixed})
        ends = [end + len(self.buffer_tokens) for end in accumulate(tokens)]
        for block in self.blocks:
            block.attention = ScaleAttention(block.attention, ends)  # type: ignore[arg-type]
