"""A stem of overlapping patches, merged step by step, replaces the encoder's patches (T2T-ViT, arXiv 2101.11986)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.models.encoder import Encoder
from alitok.models.transformer import Init, init_weights

SPLITS = {4: [(7, 4, 2)], 8: [(7, 4, 2), (3, 2, 1)], 16: [(7, 4, 2), (3, 2, 1), (3, 2, 1)]}  # kernel, stride, padding


class TokenTransformer(nn.Module):
    """One attention head that narrows tokens: v + proj(attention), then x + MLP(norm(x)) of the same width.

    Scores are scaled by inputs^-1/2, as in T2T-ViT's code, not by width^-1/2.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(inputs)
        self.qkv = nn.Linear(inputs, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, inputs) -> (B, T, width)."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = v + self.proj(F.scaled_dot_product_attention(q, k, v, scale=x.shape[-1] ** -0.5))
        return x + self.mlp(self.norm2(x))


class SoftSplits(nn.Module):
    """Turns images into a map of patches: splits into overlapping squares, each split followed by a `TokenTransformer`.

    A linear layer replaces it after the last split. T2T-ViT's performer, which saves memory at 256 pixels, is not
    implemented.

    Args:
        patch_size: 4, 8 or 16: side in pixels of each place of the map.
        width: channels of the map.
        inner: channels between splits.
        scale, shift: applied to the pixels: scale (x - shift).
    """

    def __init__(self, patch_size: int, width: int, inner: int, scale: float, shift: float) -> None:
        super().__init__()
        if patch_size not in SPLITS:
            known = ", ".join(map(str, SPLITS))
            raise BadInput(f"T2TEncoder: patch_size must be one of {known} for a T2T stem, not {patch_size}.")
        self.splits = SPLITS[patch_size]
        self.scale, self.shift = scale, shift
        inputs = [kernel**2 * (inner if number else 3) for number, (kernel, _, _) in enumerate(self.splits)]
        self.transformers = nn.ModuleList(TokenTransformer(count, inner) for count in inputs[:-1])
        self.proj = nn.Linear(inputs[-1], width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H / patch_size, W / patch_size)."""
        x = self.scale * (images - self.shift)
        for number, (kernel, stride, padding) in enumerate(self.splits):
            grid = (x.shape[-2] // stride, x.shape[-1] // stride)
            tokens = F.unfold(x, kernel, stride=stride, padding=padding).mT
            last = number == len(self.transformers)
            x = (self.proj if last else self.transformers[number])(tokens).mT.unflatten(-1, grid)
        return x


class T2TEncoder(Encoder):
    """`Encoder` with `SoftSplits` as its patch embedding.

    Args:
        patch_size, width, init, arguments: as for `Encoder`.
        inner: channels between the splits; T2T-ViT has 64.

    Raises:
        BadInput: a patch size other than 4, 8 or 16 pixels, or fewer than one channel between the splits.
    """

    def __init__(self, patch_size: int, width: int, init: Init = "paper", inner: int = 64, **arguments: Any) -> None:
        if inner < 1:
            raise BadInput(f"T2TEncoder: inner must be 1 or more, not {inner}.")
        super().__init__(patch_size=patch_size, width=width, init=init, **arguments)
        # as in `Encoder`: except with the paper's init, pixels are three times their difference from gray
        stem = SoftSplits(patch_size, width, inner, *((1.0, 0.0) if init == "paper" else (3.0, 0.5)))
        init_weights(stem, init)
        self.patch_embed = stem  # type: ignore[assignment]
