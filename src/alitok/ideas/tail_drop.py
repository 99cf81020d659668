"""Tail drop: in training the decoder gets only the first tokens of the sequence, so that any prefix decodes."""

from torch import Tensor

from alitok.common.random import Step
from alitok.models.seams import Bottleneck, Decoding, Quantized, Quantizer


class TailDrop(Bottleneck):
    """A bottleneck that cuts the sequence to its first k tokens, k uniform in 1..N (One-D-Piece, arXiv 2501.10064).

    One k is drawn per global batch, from seed and step only. Dropped tokens are removed, so the decoder must accept
    sequences of any length. The quantizer's losses use all N tokens.
    """

    shortens = True
    any_length = True

    def forward(self, tokens: Quantized, quantizer: Quantizer, step: Step) -> list[Decoding]:
        """The first k tokens (B, k, D)."""
        kept = 1 + step.derive("tail drop") % tokens.decodable.shape[1]
        return [Decoding(latents=tokens.decodable[:, :kept])]

    def complete(self, prefix: Tensor, total: int) -> Tensor:
        """Return (B, k, D) unchanged."""
        return prefix
