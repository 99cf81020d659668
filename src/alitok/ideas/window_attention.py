"""Attention within windows in some of the encoder's blocks (OmniTokenizer, arXiv 2406.09399, its image part)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.models.encoder import Encoder
from alitok.models.transformer import Attention

FULL, WINDOW = "t", "w"


class WindowAttention(nn.Module):
    """Attention in which each token sees its window, with a learned bias for each offset between two places.

    The sequence is [patches ; prefix latents ; image latents], row by row. A window holds the patches of a square and
    the latents of the same places. Prefix latents, which have no place, see everything; no other token sees them.

    Args:
        attention: plain attention whose layers it takes over.
        rows: patches along a side of the image.
        window: patches along a side of a window.
        prefix: number of prefix latents.
    """

    index: Tensor
    inverse: Tensor
    offsets: Tensor

    def __init__(self, attention: Attention, rows: int, window: int, prefix: int) -> None:
        super().__init__()
        self.heads = attention.heads
        self.qkv, self.proj = attention.qkv, attention.proj
        self.prefix = slice(rows * rows, rows * rows + prefix)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, self.heads))
        # On the CPU even in a meta-device context: nothing would fill these small tables later.
        device = torch.device("cpu")
        places = torch.arange(rows * rows, device=device).view(rows, rows)
        squares = rearrange(places, "(a i) (b j) -> (a b) (i j)", i=window, j=window)
        index = torch.cat([squares, squares + self.prefix.stop], dim=1)
        order = torch.cat([index.flatten(), torch.arange(self.prefix.start, self.prefix.stop, device=device)])
        row, column = torch.arange(window, device=device).repeat(2, 1)
        row, column = row.repeat_interleave(window).repeat(2), column.repeat(window).repeat(2)
        apart = [axis[:, None] - axis + window - 1 for axis in (row, column)]
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("inverse", order.argsort(), persistent=False)
        self.register_buffer("offsets", apart[0] * (2 * window - 1) + apart[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        q, k, v = (rearrange(part, "b t (h d) -> b h t d", h=self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        own_q, own_k, own_v = (part[:, :, self.index].transpose(1, 2) for part in (q, k, v))  # (B, windows, heads, ...)
        bias = self.bias[self.offsets].permute(2, 0, 1).to(q.dtype)
        near = F.scaled_dot_product_attention(own_q, own_k, own_v, attn_mask=bias)
        near = rearrange(near, "b w h t d -> b (w t) (h d)")
        far = F.scaled_dot_product_attention(q[:, :, self.prefix], k, v)
        joined = torch.cat([near, rearrange(far, "b h t d -> b t (h d)")], dim=1)
        return self.proj(joined[:, self.inverse])


class WindowEncoder(Encoder):
    """`Encoder` with `WindowAttention` in some of its blocks.

    OmniTokenizer has only patches, no latents. Its other parts, a depth-wise convolution before each full block,
    normed queries and keys, and GEGLU, are not implemented.

    Args:
        image_size, patch_size, arguments: as for `Encoder`, without causal.
        pattern: which blocks see all (t) and which their window (w), stretched over the depth; OmniTokenizer: "ttww".
        window: patches along a side of a window; None for half the image.

    Raises:
        BadInput: an unknown letter in the pattern, windows that do not tile the image, fewer latents than patches, or
            a causal encoder.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        pattern: str = "ttww",
        window: int | None = None,
        **arguments: Any,
    ) -> None:
        rows = image_size // patch_size
        window = max(1, rows // 2) if window is None else window
        prefix = arguments.get("num_latents", 0) - rows * rows
        if not pattern or set(pattern) - {FULL, WINDOW}:
            raise BadInput(f"WindowEncoder: pattern must be letters t (all) and w (window), not {pattern!r}.")
        if window < 1 or rows % window:
            raise BadInput(f"WindowEncoder: {rows} rows of patches do not divide into windows of {window}; set window.")
        if prefix < 0 or arguments.get("causal"):
            raise BadInput(
                f"WindowEncoder gives each of the {rows * rows} patches a latent, and is not causal: set num_latents to"
                f" {rows * rows} or more, not {arguments.get('num_latents')}, and leave causal out."
            )
        super().__init__(image_size, patch_size, **arguments)
        self.pattern = stretched(pattern, len(self.blocks))
        for letter, block in zip(self.pattern, self.blocks, strict=True):
            if letter == WINDOW:
                block.attention = WindowAttention(block.attention, rows, window, prefix)  # type: ignore[arg-type]


def stretched(pattern: Sequence[str], depth: int) -> list[str]:
    """The pattern stretched over `depth` blocks: "tw" over 4 is t, t, w, w."""
    return [pattern[block * len(pattern) // depth] for block in range(depth)]
