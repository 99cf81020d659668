"""Sequences that a generator writes along a real image: some tokens are the image's own, the rest are drawn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.sampling.generate import Sampler


def check_sigma(sigma: float) -> None:
    """Raises BadInput where sigma is no share of tokens."""
    if not 0 <= sigma <= 1:
        raise BadInput(f"The share of true tokens, sigma, must lie in 0..1, not {sigma}.")


class MixedSampler:
    """Draws sequences of which about a share sigma of the tokens are those of real images.

    Args:
        sampler: of the generator.
        sigma: the probability that a token is the true one, 0..1.

    Raises:
        BadInput: sigma outside 0..1.
    """

    def __init__(self, sampler: Sampler, sigma: float) -> None:
        check_sigma(sigma)
        self.sampler, self.sigma = sampler, sigma

    def sample(self, ids: Tensor, labels: Tensor, indices: Sequence[int]) -> Tensor:
        """Sequences for images whose own tokens are given; image i is the same in any batch on a CPU.

        Args:
            ids: (B, N) or (B, N, S) the images' own tokens.
            labels: (B,) their classes.
            indices: of the images; with the seed they decide which tokens are true, and the draws.

        Returns:
            ids of the same shape.
        """
        tokens, seed = ids.shape[1], self.sampler.draw.seed
        drawn = torch.stack([torch.rand(tokens, generator=stream(seed, "true tokens", index)) for index in indices])
        true = (drawn < self.sigma).to(ids.device)
        return self.sampler.sample(labels, indices, given=ids, given_mask=true)
