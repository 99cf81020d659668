"""The places of tokens over a picture, and pictures decoded from their first tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alitok.models.decoder import Decoder
from alitok.models.tokenizer import Tokenizer

GRAY = 0.85


@dataclass(frozen=True)
class Layout:
    """`prefix` tokens, then `rows` x `rows` tokens over the picture, row by row."""

    prefix: int
    rows: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Layout":
        """The layout of a `Decoder`; with any other decoder no token has a place in the picture."""
        decoder = tokenizer.decoder
        if isinstance(decoder, Decoder):
            return cls(decoder.num_prefix, decoder.rows)
        return cls(tokenizer.num_tokens, 0)

    def blank(self, image: Tensor, count: int) -> Tensor:
        """The image (3, H, W) with the cells of all but the first `count` tokens in gray."""
        image = image.clone()
        if self.rows:
            known = torch.arange(self.rows**2, device=image.device).view(self.rows, self.rows) < count - self.prefix
            side = image.shape[-1] // self.rows
            image[:, ~known.repeat_interleave(side, 0).repeat_interleave(side, 1)] = GRAY
        return image


@torch.no_grad()
def decode_first(tokenizer: Tokenizer, layout: Layout, ids: Tensor) -> Tensor:
    """Decode the first ids (k,) or (k, S) of a picture: (3, H, W) in [0, 1].

    A tokenizer that cannot decode first tokens alone gets zeros for the rest, and their cells are gray.
    """
    count, total = len(ids), tokenizer.num_tokens
    if count == total or tokenizer.any_length:
        return tokenizer.decode(ids[None])[0].clamp(0, 1)
    latents = tokenizer.quantizer.lookup(ids[None])
    rest = latents.new_zeros(1, total - count, latents.shape[-1])
    image = tokenizer.decoder.decode(torch.cat([latents, rest], dim=1)).float()[0]
    return layout.blank(image.clamp(0, 1), count)
