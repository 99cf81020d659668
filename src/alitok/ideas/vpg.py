"""Guidance away from a bad prefix: the same network over a past with swapped places (VPG, arXiv 2605.30317)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from alitok.common.devices import send
from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.models.generator import Generator
from alitok.sampling.guidance import Branch, PowerCosine


@dataclass(frozen=True)
class BadPrefix(PowerCosine):
    """l + strength (l - l'); l' comes from the same branches over a past with swapped places.

    In l' a share of the places store the cached key and value of an earlier place of the same kind (prefix or image),
    with its rotation. Seed and image decide which. VPG is published for next-scale models: a place takes the embedding
    of another place in its scale, with a share of 0.1 and a strength of 1.3 to 3. On next-token models this is an open
    experiment. It computes four rows per image, or two with a scale of 1.

    Args:
        scale, power: arguments of `PowerCosine`, which guides l and l' first; with a scale of 1 these are the class's
            logits.
        strength: 0 leaves only the branches of `PowerCosine`.
        share: share of swapped places.

    Raises:
        BadInput: a strength below 0, or a share outside 0..1.
    """

    scale: float = 1.0
    strength: float = 1.0
    share: float = 0.1

    def __post_init__(self) -> None:
        if self.strength < 0 or not 0 <= self.share <= 1:
            raise BadInput(
                f"BadPrefix takes a strength of 0 or more and a share in 0..1, not {self.strength} and {self.share}."
            )

    def branches(self, generator: Generator, labels: Tensor, seed: int, indices: Sequence[int]) -> list[Branch]:
        good = super().branches(generator, labels, seed, indices)
        good = good[:1] if self.scale == 1 else good
        if self.strength == 0:
            return good
        rows = [swapped_places(generator.num_tokens, generator.num_prefix, self.share, seed, i) for i in indices]
        sources = send(torch.stack(rows), labels.device)
        return good + [replace(branch, sources=sources) for branch in good]

    def combine(self, logits: Sequence[Tensor], positions: Tensor, steps: int) -> Tensor:
        def guided(parts: Sequence[Tensor]) -> Tensor:
            return parts[0] if len(parts) == 1 else super(BadPrefix, self).combine(parts, positions, steps)

        if self.strength == 0:
            return guided(logits)
        half = len(logits) // 2
        good, bad = guided(logits[:half]), guided(logits[half:])
        return good + self.strength * (good - bad)


def swapped_places(tokens: int, prefix: int, share: float, seed: int, index: int) -> Tensor:
    """(N,) int64: the position whose key and value each position takes.

    Position 0 belongs to the label, position i > 0 to token i - 1. A swapped position takes an earlier position of
    the same kind that is not swapped.
    """
    noise = stream(seed, "bad prefix", int(index))
    swapped = torch.rand(tokens, generator=noise) < share
    which = torch.rand(tokens, generator=noise)
    sources = torch.arange(tokens)
    for first, last in ((1, min(1 + prefix, tokens)), (1 + prefix, tokens)):
        if last - first < 2:
            continue
        gone = swapped[first:last].clone()
        gone[0] = False  # there is no earlier position of its kind
        kept = (~gone).nonzero()[:, 0]
        before = (~gone).cumsum(0) - (~gone).long()  # number of earlier positions that are not swapped
        taken = first + kept[(which[first:last] * before).long().clamp(max=len(kept) - 1)]
        sources[first:last] = torch.where(gone, taken, sources[first:last])
    return sources
