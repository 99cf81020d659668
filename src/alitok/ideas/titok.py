"""TiTok's decoder: the image is read from mask tokens, one per patch, that see a sequence of latents of any length."""

import torch
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models import seams
from alitok.models.decoder import PixelHead
from alitok.models.transformer import Block, Init, init_weights, position_std


class TiTokDecoder(seams.Decoder):
    """A ViT over [one mask token + patch positions ; latents + their positions] (TiTok, arXiv 2406.07550).

    Attention is full and the image is read at the mask tokens, so latents need no place in it, and any number of them
    can be decoded. `Encoder` with any `num_latents` is the other half. Both omit TiTok's class token, which is never
    read.

    Args:
        image_size: height and width of the images in pixels.
        patch_size: side of a patch in pixels.
        num_latents: N, the largest number of latents.
        code_dim: D, channels of a latent.
        width, depth, heads: size of the transformer.
        init: initialization of the weights, see `init_weights`; all except "paper" let small models on short schedules
            learn far sooner.
    """

    any_length = True  # a bottleneck may pass only the first latents

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_latents: int,
        code_dim: int,
        width: int,
        depth: int,
        heads: int,
        init: Init = "paper",
    ) -> None:
        super().__init__()
        self.rows = image_size // patch_size
        self.image_tokens = self.rows**2
        self.length = self.image_tokens + num_latents  # largest length of the transformer's sequence
        std = position_std(width, init)
        self.embed = nn.Linear(code_dim, width)
        self.mask_token = nn.Parameter(torch.randn(width) * std)
        self.patch_positions = nn.Parameter(torch.randn(self.image_tokens, width) * std)
        self.latent_positions = nn.Parameter(torch.randn(num_latents, width) * std)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.image_head = PixelHead(width, patch_size)
        init_weights(self, init)
        if init != "paper":  # colors pass from the start, as in `Decoder`
            nn.init.dirac_(self.image_head.conv.weight)

    def forward(self, latents: Tensor, images: Tensor | None = None, step: Step | None = None) -> dict[str, Tensor]:
        """(B, k, D), the first k <= N latents -> {"image": (B, 3, H, W)}.

        Raises:
            BadInput: more than N latents.
        """
        count, most = latents.shape[1], len(self.latent_positions)
        if count > most:
            raise BadInput(f"The decoder was made for {most} latents and is given {count}; give both halves as many.")
        x = self.embed(latents)
        x = x + self.latent_positions[:count]
        masks = (self.mask_token + self.patch_positions).to(x.dtype).expand(len(x), -1, -1)
        x = self.norm_in(torch.cat([masks, x], dim=1))
        for block in self.blocks:
            x = block(x)
        return {"image": self.image_head(self.norm_out(self.at_image(x)), self.rows)}

    def at_image(self, hidden: Tensor) -> Tensor:
        return hidden[:, : self.image_tokens]
