"""How a generator that is not causal draws an image: many tokens at a time, on a canvas with masked places."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alitok.common.build import build_a
from alitok.common.devices import send
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.models.generator import Generator
from alitok.sampling.guidance import Branch, Guidance


@dataclass
class Canvas:
    """A batch of images to be drawn.

    Attributes:
        generator: the one that is sampled, with `token_logits`.
        symbols: (B, N) int64, ids of the known tokens and V for the masked ones.
        indices: positions of the images in the whole set; with the seed they decide the random numbers.
        on_step: called with the step's number after each step.
    """

    generator: Any
    rule: Guidance
    branches: Sequence[Branch]
    symbols: Tensor
    seed: int
    indices: Sequence[int]
    temperature: float
    on_step: Callable[[int], None] | None = None

    def logits(self, symbols: Tensor, step: int, steps: int) -> Tensor:
        """Logits (B, N, V) of all places after guidance, whose scale depends on the share of steps done."""
        position = send(torch.tensor([step]), symbols.device)
        parts = []
        for branch in self.branches:
            network: Any = self.generator if branch.generator is None else branch.generator
            parts.append(network.token_logits(symbols, branch.labels, branch.condition).float().flatten(0, 1))
        return self.rule.combine(parts, position, steps).unflatten(0, symbols.shape)

    def done(self, step: int) -> None:
        if self.on_step is not None:
            self.on_step(step)


class Reveal:
    """An order and a number of steps in which masked tokens are drawn.

    Attributes:
        steps: number of steps.
    """

    steps: int

    def __call__(self, canvas: Canvas) -> Tensor:
        """Return ids (B, N). Draws depend only on the canvas's seed and indices; known symbols stay."""
        raise NotImplementedError


def reveal_for(generator: Generator, draw: Draw) -> Reveal | None:
    """The sampler of a draw, else the generator's own; None for a causal generator, which is drawn token by token.

    Raises:
        BadInput: a sampler for a causal generator, a class that is no `Reveal`, or a setting of the draw that needs
            drawing token by token.
    """
    name = type(generator).__name__
    if generator.causal:
        if draw.sampler is not None:
            raise BadInput(f"{name} is causal and drawn token by token: leave out the sampler {draw.sampler!r}.")
        return None
    if draw.keep is not None or draw.window > 1 or draw.compiled or draw.noise == "gumbel":
        raise BadInput(f"{name} draws many tokens in a step: leave out keep, window, compile and Gumbel noise.")
    chosen = generator.sampler if draw.sampler is None else draw.sampler
    made: Reveal = build_a(Reveal, chosen if isinstance(chosen, Mapping) else {"class_path": chosen})
    return made
