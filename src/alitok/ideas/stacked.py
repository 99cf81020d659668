"""MingTok's two decoders in one: causal layers keep the tokens predictable, later full layers restore quality."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.losses.terms import Batch, LossTerm, Outputs, image_pair
from alitok.models.decoder import Decoder, PixelHead


class StackedDecoder(Decoder):
    """`Decoder` whose first blocks are causal and whose last ones see everything (MingTok, arXiv 2510.06590).

    The prefix head reads the causal blocks. MingTok also splits each token into four between the two halves; here both
    have one patch per token, as AliTok's two stages.

    Args:
        causal_share: share of the blocks that are causal; there is at least one of each kind.
        causal_head: also decode an image from the causal blocks, for `CausalImage`. Without it the full blocks may
            cancel the causal blocks' effect on the encoder.
        arguments: arguments of `Decoder`; `depth` counts all blocks.

    Raises:
        BadInput: fewer than two blocks, a share that is not between 0 and 1, or `causal: false`.
    """

    def __init__(self, causal_share: float = 0.5, causal_head: bool = True, **arguments: Any) -> None:
        if not arguments.get("causal", True):
            raise BadInput("StackedDecoder: its first blocks are causal; leave `causal: false` out.")
        super().__init__(**{**arguments, "causal": True})
        depth = len(self.blocks)
        if depth < 2 or not 0 < causal_share < 1:
            raise BadInput(
                "StackedDecoder needs at least two blocks and a causal_share between 0 and 1, not"
                f" {depth} and {causal_share}."
            )
        self.causal_depth = min(max(1, round(causal_share * depth)), depth - 1)
        for block in self.blocks[self.causal_depth :]:
            block.attention.causal = False  # type: ignore[union-attr]
        width = self.norm_out.normalized_shape[0]
        self.causal_norm = nn.LayerNorm(width)
        self.causal_head = PixelHead(width, self.image_head.patch_size) if causal_head else None
        if self.causal_head is not None:
            self.causal_head.load_state_dict(self.image_head.state_dict())

    def forward(self, latents: Tensor, images: Tensor | None = None, step: Step | None = None) -> dict[str, Tensor]:
        """As `Decoder`; with a causal head also "causal_image" (B, 3, H, W)."""
        x = self.sequence(latents)
        outputs: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number == self.causal_depth:
                seen = self.causal_norm(x[:, self.buffer_tokens.shape[0] :])
                if self.causal_head is not None:
                    outputs["causal_image"] = self.causal_head(self.at_image(seen), self.rows)
                if self.prefix_head is not None:
                    outputs["prefix"] = self.prefix_head(seen[:, : self.num_prefix], 1)
        return outputs | {"image": self.image_head(self.at_image(self.norm_out(x)), self.rows)}


class CausalImage(LossTerm):
    """Mean squared error of the causal blocks' image."""

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        return F.mse_loss(*image_pair(batch, {"image": outputs["causal_image"]}))
