"""Nested dropout: in training each image keeps its first tokens only, the others become a mask token."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import derive_seed

Lengths = Literal["uniform", "powers", "rounded"]


class NestedDropout(nn.Module):
    """A bottleneck that masks all but the first k tokens of each image (FlexTok, arXiv 2502.13967).

    k is drawn for each image, from seed, step and its place in the global batch alone. The sequence keeps its length,
    so that any decoder will do; the mask token is learned.

    Args:
        code_dim: D.
        lengths: k is "uniform" in 1..N, one of the "powers" of two up to N and N itself with equal probability, or
            uniform and "rounded" up to a power of two (at most N).

    Raises:
        BadInput: another word for the lengths.
    """

    def __init__(self, code_dim: int, lengths: Lengths = "powers") -> None:
        super().__init__()
        if lengths not in (known := get_args(Lengths)):
            raise BadInput(f"NestedDropout: lengths must be {', '.join(known[:-1])} or {known[-1]}, not {lengths}.")
        self.lengths = lengths
        self.mask_token = nn.Parameter(torch.randn(code_dim) * 0.02)  # as codes begin
        self.seed = self.step = self.first = 0

    def begin_step(self, *, seed: int, step: int, steps: int, first: int, size: int) -> None:
        """Says of which batch the next images are, and the place of the first of them in it."""
        self.seed, self.step, self.first = seed, step, first

    def kept(self, place: int, total: int) -> int:
        """k of the image at `place` of the global batch, out of `total` tokens."""
        number = derive_seed(self.seed, "nested dropout", self.step, place)
        powers = powers_of_two(total)
        if self.lengths == "powers":
            return powers[number % len(powers)]
        count = 1 + number % total
        return count if self.lengths == "uniform" else next(power for power in powers if power >= count)

    def forward(self, quantized: Tensor, latents: Tensor, ids: Tensor | None, quantizer: Any) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        images, total = quantized.shape[:2]
        lengths = torch.tensor([self.kept(self.first + row, total) for row in range(images)])
        kept = lengths.to(quantized.device, non_blocking=True)
        dropped = torch.arange(total, device=quantized.device) >= kept[:, None]
        return torch.where(dropped[..., None], self.mask_token.to(quantized.dtype), quantized)

    def complete(self, prefix: Tensor, total: int) -> Tensor:
        """(B, k, D), the first of `total` tokens -> (B, total, D), the others masked."""
        masks = self.mask_token.to(prefix.dtype).expand(len(prefix), total - prefix.shape[1], -1)
        return torch.cat([prefix, masks], dim=1)


def powers_of_two(total: int) -> list[int]:
    """1, 2, 4, ... below `total`, and `total`."""
    return [2**power for power in range(total.bit_length()) if 2**power < total] + [total]
