"""Finite scalar quantization: every channel is bounded and rounded to a few levels (FSQ, arXiv 2309.15505)."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.quantizer import check_codebook
from alitok.models.seams import Quantized, Quantizer


class FiniteScalarQuantizer(Quantizer):
    """Rounds channel i to L_i levels; the codes are all combinations, V = prod L_i. Nothing is learned.

    h = (L - 1)(1 + 1e-3) / 2; o = 1/2 for even L, else 0; s = atanh(o / h); b = tanh(z + s) h - o; the code is
    round(b) / floor(L / 2), with the gradient of b. The id is sum_i (round(b_i) + floor(L_i / 2)) prod_{j < i} L_j: the
    first channel is the least significant. There is no loss.

    Args:
        levels: L_i of each channel, 2 or more; published: [8, 6, 5] for 2^8 codes, [8, 5, 5, 5] for 2^10,
            [7, 5, 5, 5, 5] for 2^12, [8, 8, 8, 6, 5] for 2^14, [8, 8, 8, 5, 5, 5] for 2^16.

    Raises:
        BadInput: no channels, fewer than 2 levels in a channel, or more than 2^24 codes.
    """

    levels: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise BadInput(f"FSQ needs 2 or more levels for each channel, not {list(levels)}.")
        self.counts = [int(count) for count in levels]
        self.codebook_size = prod(self.counts)
        check_codebook(self.codebook_size, f"FSQ with levels {self.counts}", "take fewer channels or levels")
        # A buffer, so that the tokenizer's digest reflects the levels.
        self.register_buffer("levels", torch.tensor(self.counts, dtype=torch.float32))

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) -> codes in [-1, 1], ids (B, N).

        Raises:
            BadInput: D is not the number of levels.
        """
        if latents.shape[-1] != len(self.counts):
            raise BadInput(
                f"FSQ with levels {self.counts} takes {len(self.counts)} channels, the latents have"
                f" {latents.shape[-1]}; set code_dim to {len(self.counts)}."
            )
        with torch.autocast(latents.device.type, enabled=False):
            reach = (self.levels - 1) * (1 + 1e-3) / 2
            offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
            latents = latents.float()
            bounded = torch.tanh(latents + torch.atanh(offset / reach)) * reach - offset
            # tanh would hide an infinite latent; NaN reaches the loss
            bounded = torch.where(latents.isfinite(), bounded, torch.nan)
            half = torch.floor(self.levels / 2)
            # `reach` exceeds the last level, so with many levels rounding may too; and NaN has no digit.
            digits = (bounded.detach().round() + half).nan_to_num(0.0).clamp_min(0.0).minimum(self.levels - 1)
            rounded = bounded + (digits - half - bounded).detach()
            ids = (digits.long() * self._places()).sum(-1)
        return Quantized(latents=bounded / half, quantized=rounded / half, ids=ids)

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B, N) -> latents (B, N, D) float32."""
        half = torch.floor(self.levels / 2)
        digits = ids[..., None] // self._places() % self.levels.long()
        return (digits - half) / half

    def _places(self) -> Tensor:
        """The increase of the id per level of each channel, (D,) int64."""
        counts = self.levels.long()
        return counts.cumprod(0) // counts
