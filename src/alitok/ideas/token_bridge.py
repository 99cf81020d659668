"""TokenBridge: an autoencoder trained without codes; its channels are cut into bins afterward (arXiv 2503.16430)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.seams import Quantized, Quantizer

WIDEST = 3.0  # standard deviations that the bins cover
# The bins have equal probability under a standard normal law, so the channel is scaled by 1 / sqrt(3): the density of
# levels with the least squared error is that of a normal law with three times the channel's variance.
SCALE = 1 / math.sqrt(3)
MOST_LEVELS = 740  # with more, the first and the last bin lie beyond `WIDEST`


class BinQuantizer(Quantizer):
    """Quantizes each channel separately: standardized, scaled by 1 / sqrt(3), set to the nearest of B levels.

    A token is D ids of B levels. Nothing is trained: phases with `quantize: false` train the autoencoder, and the last
    phase has `fit: N`, which measures each channel's mean and deviation. TokenBridge assumes a deviation of 1 and
    scales by 0.6.

    Args:
        code_dim: D, channels and sub-codes.
        codebook_size: B, levels per channel.

    Raises:
        BadInput: fewer than 2 channels, fewer than 2 levels, or so many that the outermost ones are empty.
    """

    mean: Tensor
    deviation: Tensor
    levels: Tensor

    def __init__(self, code_dim: int, codebook_size: int) -> None:
        super().__init__()
        if code_dim < 2 or codebook_size < 2:
            raise BadInput(f"BinQuantizer takes 2 or more channels and levels, not {code_dim} and {codebook_size}.")
        if codebook_size > MOST_LEVELS:
            raise BadInput(f"BinQuantizer takes at most {MOST_LEVELS} levels, not {codebook_size}.")
        self.sub_codes, self.codebook_size = code_dim, codebook_size
        self.register_buffer("mean", torch.zeros(code_dim))
        self.register_buffer("deviation", torch.ones(code_dim))
        self.register_buffer("levels", bin_levels(codebook_size))

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) -> levels, ids (B, N, D).

        Raises:
            BadInput: the latents have a wrong number of channels.
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
        """Measure mean and deviation of each channel over all tokens."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for latents in batches:
            rows = latents.flatten(0, -2).double()
            count, total, squares = count + len(rows), total + rows.sum(0).cpu(), squares + rows.square().sum(0).cpu()
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((squares / count - mean.square()).clamp_min(1e-12).sqrt())


def bin_levels(count: int) -> Tensor:
    """(B,) float32: means of a standard normal number within B bins of equal probability between -3 and 3."""
    edges = torch.special.ndtri(torch.arange(count + 1, dtype=torch.float64) / count).clamp(-WIDEST, WIDEST)
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    mass = torch.special.ndtr(edges).diff()
    return (-density.diff() / mass).float()
