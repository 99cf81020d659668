"""TokenBridge: an autoencoder trained without codes, whose channels are cut into bins afterwards (arXiv 2503.16430)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.seams import Quantized, Quantizer

WIDEST = 3.0  # standard deviations that the bins cover
# Bins of equal probability of a normal number that is 1 / sqrt(3) as wide as the channel: of equally many bins these
# have the least squared error, since the best density of levels is that of a normal law of three times the variance.
SCALE = 1 / math.sqrt(3)


class BinQuantizer(Quantizer):
    """Each channel by itself: standardized, scaled by 1 / sqrt(3), and set to the nearest of B levels.

    A token is D ids of B levels. Nothing is trained: phases with `quantize: false` train the autoencoder, and the last
    one has `fit: N`, which measures mean and deviation of each channel. TokenBridge assumes a deviation of 1 and scales
    by 0.6.

    Args:
        code_dim: D, channels and sub-codes.
        codebook_size: B, levels of a channel.

    Raises:
        BadInput: fewer than 2 channels or levels.
    """

    mean: Tensor
    deviation: Tensor
    levels: Tensor

    def __init__(self, code_dim: int, codebook_size: int) -> None:
        super().__init__()
        if code_dim < 2 or codebook_size < 2:
            raise BadInput(f"BinQuantizer takes 2 or more channels and levels, not {code_dim} and {codebook_size}.")
        self.sub_codes, self.codebook_size = code_dim, codebook_size
        self.register_buffer("mean", torch.zeros(code_dim))
        self.register_buffer("deviation", torch.ones(code_dim))
        self.register_buffer("levels", bin_levels(codebook_size))

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) -> levels, ids (B, N, D).

        Raises:
            BadInput: the latents have another number of channels.
        """
        ids = self.ids(latents)
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            through = latents + (self.lookup(ids) - latents).detach()
        return Quantized(latents=latents, quantized=through, ids=ids)

    @torch.no_grad()
    def ids(self, latents: Tensor) -> Tensor:
        if latents.shape[-1] != self.sub_codes:
            raise BadInput(
                f"BinQuantizer has {self.sub_codes} channels, the latents {latents.shape[-1]}: set code_dim to that."
            )
        scaled = (latents.float() - self.mean) / self.deviation * SCALE
        between = (self.levels[1:] + self.levels[:-1]) / 2
        return torch.bucketize(scaled, between)

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B, N, D) -> (B, N, D) float32."""
        return self.levels[ids] / SCALE * self.deviation + self.mean

    @torch.no_grad()
    def fit(self, batches: Iterator[Tensor]) -> None:
        """Mean and deviation of each channel over all tokens."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for latents in batches:
            rows = latents.flatten(0, -2).double()
            count, total, squares = count + len(rows), total + rows.sum(0).cpu(), squares + rows.square().sum(0).cpu()
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((squares / count - mean.square()).clamp_min(1e-12).sqrt())


def bin_levels(count: int) -> Tensor:
    """(B,) float32: means of a standard normal number within B bins of equal probability, whose ends lie at +-3."""
    edges = torch.special.ndtri(torch.arange(count + 1, dtype=torch.float64) / count).clamp(-WIDEST, WIDEST)
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    mass = torch.special.ndtr(edges).diff()
    return (-density.diff() / mass).float()
