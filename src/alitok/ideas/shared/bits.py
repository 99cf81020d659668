"""Binary codes as ids, and the entropy of their bits. Bit i of an id, from the least significant, is channel i."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from alitok.common.errors import BadInput

MOST_BITS = 24


def check_bits(code_dim: int) -> None:
    """Raise BadInput for fewer than 1 or more than 24 bits."""
    if not 1 <= code_dim <= MOST_BITS:
        raise BadInput(f"Binary codes have 1 to {MOST_BITS} channels, a bit for each, not {code_dim}: set code_dim.")


def ids_of(latents: Tensor, bits: int) -> Tensor:
    """(..., D) -> ids (...), whose set bits are the positive channels.

    Raises:
        BadInput: the latents have a wrong number of channels.
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


def bit_entropy(logit: Tensor, scale: float = 1.0) -> Tensor:
    """Entropy of a bit with the logit `scale * logit`, in nats, elementwise; finite for every logit."""
    size = scale * logit.abs()  # in this order the backward pass keeps no second copy of the logits
    return F.softplus(-size) + size * torch.sigmoid(-size)


@dataclass
class ShareStatistics:
    """Summed probabilities of each code, or bit, over a set of latents; sets merge in any grouping and order.

    Attributes:
        total: (S, V) sum over tokens of p(code | latent), or (D,) of p(bit | latent).
        count: () number of tokens.
    """

    total: Tensor
    count: Tensor

    def merge(self, other: Self) -> Self:
        """Statistics of both sets together."""
        return type(self)(self.total + other.total, self.count + other.count)
