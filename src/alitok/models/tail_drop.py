"""Tail drop: in training the decoder is given the first tokens of the sequence only, so that any prefix decodes."""

from typing import Any

from torch import Tensor, nn

from alitok.common.random import derive_seed


class TailDrop(nn.Module):
    """A bottleneck that cuts the sequence to its first k tokens, k uniform in 1..N (One-D-Piece, arXiv 2501.10064).

    One k is drawn for a global batch, from seed and step alone. Dropped tokens are removed: the decoder must take
    sequences of any length. The quantizer's losses are over all N.
    """

    shortens = True

    def __init__(self) -> None:
        super().__init__()
        self.seed = self.step = 0

    def begin_step(self, *, seed: int, step: int, steps: int, first: int, size: int) -> None:
        """Says of which batch the next images are."""
        self.seed, self.step = seed, step

    def forward(self, quantized: Tensor, latents: Tensor, ids: Tensor | None, quantizer: Any) -> Tensor:
        """(B, N, D) -> (B, k, D)."""
        kept = 1 + derive_seed(self.seed, "tail drop", self.step) % quantized.shape[1]
        return quantized[:, :kept]

    def complete(self, prefix: Tensor, total: int) -> Tensor:
        """What the decoder gets where only the first of `total` tokens are there, (B, k, D): these and no more."""
        return prefix
