"""Sequences that a generator writes along a real image: some tokens are the image's own, the rest are drawn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.sampling.generate import Sampler
from alitok.sampling.guidance import Constant, Guidance


class TrueTokens:
    """A guidance rule that leaves the draw no choice where the true token is to stand.

    So a share of true tokens needs nothing of the loop that draws: at those places every other token has probability 0.

    Args:
        rule: that combines the branches everywhere else.
        ids: (B, N) or (B, N, S) true tokens. Tensors are kept, so that a captured step sees what is written into them.
        true: (B, N) bool, where they stand.
    """

    def __init__(self, rule: Guidance, ids: Tensor, true: Tensor) -> None:
        self.rule, self.ids, self.true = rule, ids, true
        self.value_weights = getattr(rule, "value_weights", None)

    def __call__(self, conditional: Tensor, unconditional: Tensor, step: Tensor, steps: int) -> Tensor:
        logits = self.rule(conditional, unconditional, step, steps)
        chosen = self.ids.index_select(1, step)[:, 0]
        others = torch.ones_like(logits, dtype=torch.bool).scatter_(-1, chosen[..., None], False)
        true = self.true.index_select(1, step).view(-1, *[1] * (logits.ndim - 1))
        return logits.masked_fill(others & true, -torch.inf)


def check_sigma(sigma: float) -> None:
    """Raises BadInput where sigma is no share of tokens."""
    if not 0 <= sigma <= 1:
        raise BadInput(f"The share of true tokens, sigma, must lie in 0..1, not {sigma}.")


class MixedSampler:
    """Draws sequences of which about a share sigma of the tokens are those of real images.

    Args:
        sampler: of the generator.
        rule: guidance; None for none.
        sigma: the probability that a token is the true one, 0..1.

    Raises:
        BadInput: sigma outside 0..1.
    """

    def __init__(self, sampler: Sampler, rule: Guidance | None, sigma: float) -> None:
        check_sigma(sigma)
        self.sampler, self.sigma = sampler, sigma
        self.rule = rule if rule is not None else Constant(1.0)
        self.mixed: TrueTokens | None = None

    def draw(self, ids: Tensor, labels: Tensor, indices: Sequence[int], temperature: float, seed: int) -> Tensor:
        """Sequences for images whose own tokens are given; image i is the same in any batch on a CPU.

        Args:
            ids: (B, N) or (B, N, S) the images' own tokens.
            labels: (B,) their classes.
            indices: of the images; with the seed they decide which tokens are true, and the draws.

        Returns:
            ids of the same shape.
        """
        tokens = ids.shape[1]
        drawn = torch.stack([torch.rand(tokens, generator=stream(seed, "true tokens", index)) for index in indices])
        true = (drawn < self.sigma).to(ids.device)
        if self.mixed is None or self.mixed.ids.shape != ids.shape:
            self.mixed = TrueTokens(self.rule, ids.clone(), true)
        self.mixed.ids.copy_(ids)
        self.mixed.true.copy_(true)
        return self.sampler.draw(labels, self.mixed, temperature, seed, indices)
