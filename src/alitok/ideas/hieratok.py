"""HieraTok: tokens of several scales, coarse to fine, in an encoder and a decoder that are causal between scales."""

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
    """Tokens along a side of each scale: as given, or 1, 2, 4, ... below the `rows` of patches, and `rows`.

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
    """Raises BadInput if the arguments ask for another number of tokens than the scales have."""
    if arguments.get(name, count) != count:
        raise BadInput(f"With these scales {name} is {count}, not {arguments[name]}: leave it out, or change scales.")


class ScaleAttention(nn.Module):
    """An attention whose queries see their own scale and those before it. It takes over the layers of a plain one.

    Args:
        attention: whose layers it takes.
        ends: of each scale in the sequence.
    """

    def __init__(self, attention: Attention, ends: Sequence[int]) -> None:
        super().__init__()
        self.heads = attention.heads
        self.qkv, self.proj = attention.qkv, attention.proj
        self.ends = list(ends)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(part, "b t (h d) -> b h t d", h=self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        # a product for each scale, without a mask: nothing that no query may see is computed
        parts = [
            F.scaled_dot_product_attention(q[:, :, first:last], k[:, :, :last], v[:, :, :last])
            for first, last in pairwise([0, *self.ends])
        ]
        return self.proj(rearrange(torch.cat(parts, dim=2), "b h t d -> b t (h d)"))


class HieraEncoder(Encoder):
    """`Encoder` that pools its map of patches to several scales halfway, and goes on with these.

    The first half of the blocks sees the patches, all of them; the other half the scales, coarse to fine, with
    `ScaleAttention` (HieraTok, arXiv 2509.23736). N is the sum of the squares of the scales. The paper's places of
    pooling and mask are not published.

    Args:
        image_size, patch_size, arguments: as `Encoder`, without num_latents and causal.
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
        with torch.no_grad():  # a token of a coarse scale begins with the mean place of its patches
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

    To `Decoder` the coarse scales are prefix tokens. The buffer tokens belong to the first scale.

    Args:
        image_size, patch_size, arguments: as `Decoder`, without num_prefix and causal.
        scales: as `HieraEncoder`.
    """

    def __init__(self, image_size: int, patch_size: int, scales: Sequence[int] | None = None, **arguments: Any) -> None:
        tokens = [side * side for side in scale_sides(image_size // patch_size, scales)]
        check_given(arguments, "num_prefix", sum(tokens[:-1]))
        fixed = {"num_prefix": sum(tokens[:-1]), "causal": False, "drop_prefix": False, "prefix_head": False}
        super().__init__(image_size, patch_size, **{**arguments, **fixed})
        ends = [end + len(self.buffer_tokens) for end in accumulate(tokens)]
        for block in self.blocks:
            block.attention = ScaleAttention(block.attention, ends)  # type: ignore[arg-type]
