"""Index backpropagation quantization: the gradient of a choice reaches all codes (IBQ, arXiv 2412.02692)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alitok.common.devices import float32_products
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.quantizer import BLOCK_ELEMENTS, ClusteredQuantizer
from alitok.models.seams import Quantized


class IndexBackpropagation(ClusteredQuantizer):
    """p = softmax(z . C), q = (onehot(argmax p) + p - sg(p)) C (IBQ, equations 4 to 6); no clustering.

    The forward value is the chosen code c. The decoder's gradient reaches c as in any codebook, and through p the
    latent and every code. The losses are "index" |q - z|^2, "commitment" |sg(c) - z|^2 and "codebook"
    beta |c - sg(z)|^2, means over all elements.

    Args:
        codebook_size: V.
        code_dim: D; IBQ has 256.
        beta: weight of the "codebook" loss.

    Raises:
        BadInput: no codes, more than 2^24, or a beta below 0.
    """

    nearest = False

    def __init__(self, codebook_size: int, code_dim: int, beta: float = 0.25) -> None:
        if beta < 0:
            raise BadInput(f"IndexBackpropagation: beta must be 0 or more, not {beta}.")
        super().__init__(codebook_size, code_dim, commitment=1.0, clustering=False)
        self.beta = beta
        # a buffer, so that the tokenizer's digest reflects how ids are made
        self.register_buffer("inner_product", torch.ones(()))

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) -> the codes with the largest inner products, ids (B, N)."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            ids, mixed = [], []
            for block in latents.flatten(0, -2).split(max(1, BLOCK_ELEMENTS // self.codebook_size)):
                # p is recomputed in the backward pass: (tokens, V) would not fit at full size
                chosen, mix = checkpoint(self._block, block, self.codebook.weight, use_reentrant=False)
                ids.append(chosen)
                mixed.append(mix)
            indices = torch.cat(ids).view(latents.shape[:-1])
            soft = torch.cat(mixed).view_as(latents)
            codes = self.codebook(indices)
            quantized = codes + (soft - soft.detach())
            losses = {
                "index": F.mse_loss(quantized, latents),
                "commitment": self.commitment * F.mse_loss(latents, codes.detach()),
                "codebook": self.beta * F.mse_loss(codes, latents.detach()),
            }
        return Quantized(latents=latents, quantized=quantized, ids=indices, losses=losses)

    @staticmethod
    def _block(features: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """features (m, D), codes (V, D) -> ids (m,), and p C (m, D) whose gradient reaches only p."""
        with float32_products(tf32=False):  # TF32's ten bits would often choose another code
            logits = features @ codes.T
        return logits.argmax(1), logits.softmax(1) @ codes.detach()
