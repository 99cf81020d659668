"""NesTok: each step decodes all latents and the first of them, and aligns the first layer's outputs for both.

The paper is named at huggingface.co/Jiawei804/NesTok.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.random import Step
from alitok.ideas.shared.decoder_blocks import decoder_with_blocks
from alitok.losses.terms import Batch, LossTerm, Outputs
from alitok.models.seams import Bottleneck, Decoding, Quantized, Quantizer


class AllAndPrefix(Bottleneck):
    """A bottleneck with two decodings, of all N tokens and of the first r, r uniform in 1..N (NesTok).

    The losses of both are summed. One r is drawn per global batch, from seed and step only. Tokens after the first r
    are removed, so the decoder must accept sequences of any length. The GAN sees the decoding of all tokens.
    """

    shortens = True
    any_length = True

    def forward(self, tokens: Quantized, quantizer: Quantizer, step: Step) -> list[Decoding]:
        """(B, N, D) and (B, r, D)."""
        given = tokens.decodable
        kept = 1 + step.derive("prefix") % given.shape[1]
        return [Decoding(latents=given), Decoding(latents=given[:, :kept])]

    def complete(self, prefix: Tensor, total: int) -> Tensor:
        """Return (B, k, D) unchanged."""
        return prefix


class FirstLayer(LossTerm):
    """Mean over patches of 1 - cos(h_r, h), outputs of the decoder's first block for a prefix and for all tokens.

    The gradient reaches only the prefix's decoding. The term is 0 for the first decoding of a step, and in validation.

    Args:
        weight: weight of the term in phases that set none.

    Raises:
        BadInput: once attached, the decoder has no blocks, or no `at_image` that finds the patches in their outputs.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def attach(self, model: nn.Module) -> None:
        self._decoder = decoder_with_blocks(model, "FirstLayer reads the first block")
        self.taps = ("decoder.blocks.0",)

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        if "first" not in outputs:
            return batch["image"].new_zeros(()).float()
        prefix, whole = (self._decoder.at_image(one[self.taps[0]]).float() for one in (outputs, outputs["first"]))
        return 1 - F.cosine_similarity(prefix, whole.detach(), dim=-1).mean()
