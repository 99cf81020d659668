"""Nested dropout: in training each image keeps only its first tokens; a mask token replaces the others."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from alitok.common.devices import send
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.seams import Bottleneck, Decoding, Quantized, Quantizer

Lengths = Literal["uniform", "powers", "rounded"]


class NestedDropout(Bottleneck):
    """A bottleneck that masks all but the first k tokens of each image (FlexTok, arXiv 2502.13967).

    k is drawn per image, from seed, step and its place in the global batch only. The sequence keeps its length, so
    any decoder works; the mask token is learned if the bottleneck trains.

    Args:
        code_dim: D.
        lengths: k is "uniform" in 1..N, one of the "powers" of two up to N and N itself with equal probability, or
            uniform and "rounded" up to a power of two (at most N).

    Raises:
        BadInput: unknown lengths.
    """

    any_length = True

    def __init__(self, code_dim: int, lengths: Lengths = "powers") -> None:
        super().__init__()
        if lengths not in (known := get_args(Lengths)):
            raise BadInput(f"NestedDropout: lengths must be {', '.join(known[:-1])} or {known[-1]}, not {lengths}.")
        self.lengths = lengths
        self.mask_token = nn.Parameter(torch.randn(code_dim) * 0.02)  # the codes' initial scale

    def kept(self, step: Step, place: int, total: int) -> int:
        """k, out of `total` tokens, of the image at `place` in the step's global batch."""
        number = step.derive("nested dropout", place)
        powers = powers_of_two(total)
        if self.lengths == "powers":
            return powers[number % len(powers)]
        count = 1 + number % total
        return count if self.lengths == "uniform" else next(power for power in powers if power >= count)

    def forward(self, tokens: Quantized, quantizer: Quantizer, step: Step) -> list[Decoding]:
        """(B, N, D), the dropped tokens masked."""
        given = tokens.decodable
        total = given.shape[1]
        kept = send(torch.tensor([self.kept(step, place, total) for place in step.places]), given.device)
        dropped = torch.arange(total, device=given.device) >= kept[:, None]
        return [Decoding(latents=torch.where(dropped[..., None], self.mask_token.to(given.dtype), given))]

    def complete(self, prefix: Tensor, total: int) -> Tensor:
        """(B, k, D), the first of `total` tokens -> (B, total, D), the others masked."""
        masks = self.mask_token.to(prefix.dtype).expand(len(prefix), total - prefix.shape[1], -1)
        return torch.cat([prefix, masks], dim=1)


def powers_of_two(total: int) -> list[int]:
    """1, 2, 4, ... below `total`, and `total`."""
    return [2**power for power in range(total.bit_length()) if 2**power < total] + [total]
