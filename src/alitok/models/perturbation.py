"""Latent perturbation: some tokens become codes near to theirs, so that a decoder learns to live with wrong ones."""

from math import floor
from typing import Any

import torch
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.models.quantizer import BLOCK_ELEMENTS


def check_swappable(quantizer: Any, count: int) -> None:
    """Whether a token can become one of its `count` nearest codes.

    Raises:
        BadInput: it has several sub-codes, or there are fewer codes.
    """
    if getattr(quantizer, "sub_codes", None) is not None:
        raise BadInput(
            "Near codes are swapped where a token is one id; this quantizer's tokens have sub-codes: leave the"
            " perturbation (or --pfid) out, or take a quantizer of one id."
        )
    if not 1 <= count <= quantizer.codebook_size:
        raise BadInput(
            f"A token cannot be swapped among its {count} nearest codes: the codebook has {quantizer.codebook_size}."
        )


@torch.no_grad()
def nearest_codes(latents: Tensor, quantizer: Any, count: int) -> Tensor:
    """The codes nearest to each latent by squared L2 distance, the nearest first.

    Args:
        latents: (B, N, D), before quantization.
        quantizer: one id a token, codes in the space of the latents.

    Returns:
        ids (B, N, count) int64.

    Raises:
        BadInput: fewer codes than `count`, or tokens of several sub-codes.
    """
    check_swappable(quantizer, count)
    size = quantizer.codebook_size
    with torch.autocast(latents.device.type, enabled=False):
        codes = quantizer.lookup(torch.arange(size, device=latents.device)[None])[0].float()
        norms, found = codes.square().sum(1), []
        for block in latents.float().flatten(0, -2).split(max(1, BLOCK_ELEMENTS // size)):
            distances = torch.addmm(norms, block, codes.T, alpha=-2)  # less the latent's own norm
            found.append(distances.topk(count, largest=False).indices)
    return torch.cat(found).view(*latents.shape[:-1], count)


def swap_ids(ids: Tensor, near: Tensor, alpha: float, uniforms: Tensor) -> Tensor:
    """Each id with probability alpha replaced by one of its near codes, the true one among them.

    Args:
        ids: (B, N).
        near: (B, N, delta) of `nearest_codes`.
        uniforms: (B, N, 2) in [0, 1): whether, and by which.

    Returns:
        ids (B, N).
    """
    choice = (uniforms[..., 1:] * near.shape[-1]).long()
    return torch.where(uniforms[..., 0] < alpha, near.gather(-1, choice)[..., 0], ids)


class LatentPerturbation(nn.Module):
    """A bottleneck that swaps the tokens of some images for near codes (Robust Latent Matters, arXiv 2503.08354).

    The first floor(beta B) images of a global batch of B are perturbed: each of their tokens becomes with probability
    alpha one of the delta codes nearest to its latent, drawn uniformly. The gradient goes straight through to the
    latent; ids and the quantizer's losses are those of the true codes. A given token (post-training) has its own code
    as latent, and becomes a code near to that one. alpha and delta are multiplied by a ratio that falls linearly from 1
    to `final` over the share `anneal` of the run. An image's random numbers depend on seed, step and its place in the
    global batch alone.

    Args:
        alpha, beta, delta: as above.
        anneal: where the fall of the ratio begins and ends, 0..1 of the run's steps.
        final: the ratio after it; 1 for no annealing.

    Raises:
        BadInput: a share outside 0..1, or a delta below 2, which is no perturbation.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.1,
        delta: int = 100,
        anneal: tuple[float, float] = (0.2, 0.6),
        final: float = 0.5,
    ) -> None:
        super().__init__()
        for name, share in (("alpha", alpha), ("beta", beta), ("anneal", min(anneal)), ("anneal", max(anneal))):
            if not 0 <= share <= 1:
                raise BadInput(f"LatentPerturbation: {name} must lie in 0..1, not {share}.")
        if not 0 <= final <= 1 or anneal[0] > anneal[1]:
            raise BadInput(f"LatentPerturbation: final must lie in 0..1, not {final}, and anneal must not fall.")
        if delta < 2:
            raise BadInput(f"LatentPerturbation: of {delta} nearest codes none is another; set delta to 2 or more.")
        self.alpha, self.beta, self.delta = alpha, beta, delta
        self.anneal, self.final = anneal, final
        self.seed = self.step = self.first = self.size = 0
        self.progress = 0.0

    def check(self, quantizer: Any) -> None:
        """Raises BadInput where the quantizer's codes cannot be swapped so."""
        check_swappable(quantizer, self.delta)

    def begin_step(self, *, seed: int, step: int, steps: int, first: int, size: int) -> None:
        """Says of which batch the next images are: `step` of `steps`, `first` the place of the first among `size`."""
        self.seed, self.step, self.first, self.size = seed, step, first, size
        self.progress = step / steps

    @property
    def ratio(self) -> float:
        """The factor on alpha and delta at this step."""
        begin, end = self.anneal
        if self.progress <= begin:
            return 1.0
        return 1 - (1 - self.final) * min(1.0, (self.progress - begin) / max(end - begin, 1e-9))

    def forward(self, quantized: Tensor, latents: Tensor, ids: Tensor | None, quantizer: Any) -> Tensor:
        """(B, N, D) -> (B, N, D); unchanged if the phase does not quantize, so that there are no ids."""
        count = min(floor(self.beta * self.size + 1e-9) - self.first, len(latents))
        if ids is None or count <= 0:
            return quantized
        delta = max(1, floor(self.ratio * self.delta + 1e-9))
        drawn = [
            torch.rand(ids.shape[1], 2, generator=stream(self.seed, "perturbation", self.step, self.first + row))
            for row in range(count)
        ]
        with torch.no_grad():
            near = nearest_codes(latents[:count], quantizer, delta)
            uniforms = torch.stack(drawn).to(ids.device, non_blocking=True)
            swapped = swap_ids(ids[:count], near, self.ratio * self.alpha, uniforms)
            shift = quantizer.lookup(swapped) - latents[:count]
        return torch.cat([latents[:count] + shift, quantized[count:]])
