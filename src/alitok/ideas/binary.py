"""Binary codes: one bit per channel of the latent, its sign, without a loss or learned parameters."""

import torch
from torch import Tensor

from alitok.common.random import Step
from alitok.ideas.shared.bits import bits_of, check_bits, ids_of
from alitok.models.seams import Quantized, Quantizer


class BinaryQuantizer(Quantizer):
    """b = sign(a) in {-1, 1}^D with the gradient of tanh(a): BAR's codes (arXiv 2602.09024) in a symmetric form.

    Bit i of an id, from the least significant, is whether channel i is positive. V = 2^D.

    BAR uses FSQ with 2 levels per channel. FSQ's shift puts the threshold at a = -3.8, and the slope at a = 0 is
    0.001: an encoder that starts around 0 gets only ones, and almost no gradient.

    Args:
        code_dim: D, bits of a token.

    Raises:
        BadInput: fewer than 1 or more than 24 bits.
    """

    def __init__(self, code_dim: int) -> None:
        super().__init__()
        check_bits(code_dim)
        self.code_dim = code_dim
        self.codebook_size = 1 << code_dim

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) -> codes of -1 and 1, ids (B, N); the returned latents are tanh of the given ones.

        Raises:
            BadInput: the latents have a wrong number of channels.
        """
        ids = self.ids(latents)
        latents = latents.float()
        # tanh would hide an infinite latent; NaN reaches the loss
        bounded = torch.where(latents.isfinite(), latents.tanh(), torch.nan)
        return Quantized(latents=bounded, quantized=bounded + (self.lookup(ids) - bounded).detach(), ids=ids)

    @torch.no_grad()
    def ids(self, latents: Tensor) -> Tensor:
        """(B, N, D) -> ids (B, N).

        Raises:
            BadInput: the latents have another number of channels.
        """
        return ids_of(latents, self.code_dim)

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B, N) -> codes (B, N, D) float32 of -1 and 1."""
        return bits_of(ids, self.code_dim).float() * 2 - 1
