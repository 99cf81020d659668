"""Binary codes as ids: bit i of an id, from the least significant, is channel i. And the entropy of their bits."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from alitok.common.errors import BadInput

MOST_BITS = 24


def check_bits(code_dim: int) -> None:
    """Raises BadInput for more bits than ids are made for, or none."""
    if not 1 <= code_dim <= MOST_BITS:
        raise BadInput(f"Binary codes have 1 to {MOST_BITS} channels, a bit for each, not {code_dim}: set code_dim.")


def ids_of(latents: Tensor, bits: int) -> Tensor:
    """(..., D) -> ids (...): which channels are positive.

    Raises:
        BadInput: the latents have another number of channels.
    """
    if latents.shape[-1] != bits:
        raise BadInput(
            f"Binary codes of {bits} bits take {bits} channels, the latents have {latents.shape[-1]}; set code_dim to"
            f" {latents.shape[-1]}."
        )
    return ((latents > 0).long() << torch.arange(bits, device=latents.device)).sum(-1)


def bits_of(ids: Tensor, bits: int) -> Tensor:
    """ids (...) -> (..., D) int64 of 0 and 1."""
    return ids[..., None] >> torch.arange(bits, device=ids.device) & 1


def bit_entropy(logit: Tensor) -> Tensor:
    """H of a bit with that logit, in nats, element by element; finite for every logit."""
    size = logit.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


@dataclass
class ShareStatistics:
    """How much the latents of a set took of each code, or of each bit; sets merge in any grouping and order.

    Attributes:
        total: (S, V) sum over tokens of p(code | latent), or (D,) of p(bit | latent).
        count: () number of tokens.
    """

    total: Tensor
    count: Tensor

    def merge(self, other: Self) -> Self:
        """Statistics of both sets together."""
        return type(self)(self.total + other.total, self.count + other.count)
