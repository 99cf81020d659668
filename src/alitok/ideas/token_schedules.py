"""Tokens that act only at some times of a flow, which gives them an order: D-AR's groups and Selftok's first k."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.ideas.shared.flow import TokenSchedule


class Groups(TokenSchedule):
    """One group of tokens at a time, the first at the most noise (D-AR, arXiv 2505.23660).

    With u the time before the shift, the group is round(groups (1 - u)), at most the last.

    Args:
        groups: number of parts of the sequence.
        shift: the shift of the time law and of the sampler, so that a sampler with `groups` steps uses each group once.

    Raises:
        BadInput: fewer than two groups.
    """

    def __init__(self, groups: int = 8, shift: float = 2.0) -> None:
        super().__init__()
        if groups < 2:
            raise BadInput(f"Groups: at least two groups make an order, not {groups}.")
        self.groups = groups
        self.shift = shift

    def visible(self, t: Tensor, total: int) -> Tensor:
        before = t / (self.shift - (self.shift - 1) * t)
        group = (self.groups * (1 - before)).round().clamp(max=self.groups - 1)
        return torch.arange(total, device=t.device) * self.groups // total == group[:, None]


class FirstTokens(TokenSchedule):
    """The first k(t) tokens, k piecewise linear, all of them at t = 1 (Selftok, arXiv 2505.07538).

    Args:
        shares: k / N at equally spaced times from 0 to 1. Selftok's give 192 of 512 tokens to the first fifth and 16 to
            the last.

    Raises:
        BadInput: shares that decrease, or do not end with 1.
    """

    def __init__(self, shares: Sequence[float] = (0.0, 0.375, 0.734375, 0.875, 0.96875, 1.0)) -> None:
        super().__init__()
        if len(shares) < 2 or shares[-1] != 1 or any(low > high for low, high in pairwise([0, *shares])):
            raise BadInput(f"FirstTokens: shares must rise to 1, not {list(shares)}.")
        self.shares = list(shares)

    def visible(self, t: Tensor, total: int) -> Tensor:
        pieces = len(self.shares) - 1
        share = torch.full_like(t, self.shares[0])
        for number, (low, high) in enumerate(pairwise(self.shares)):  # ramps need no table on the device
            share = share + (high - low) * (pieces * t - number).clamp(0, 1)
        return torch.arange(total, device=t.device) < (share * total).round()[:, None]
