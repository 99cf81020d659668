"""How a generator that is not causal draws an image: many tokens at a time, on a canvas with masked places."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alitok.common.build import build, import_class
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
    """`reveal_of` for a draw's sampler.

    Raises:
        BadInput: as `reveal_of`, or the draw has a setting that needs drawing token by token.
    """
    reveal = reveal_of(generator, draw.sampler)
    if reveal is not None and (draw.keep is not None or draw.window > 1 or draw.compiled or draw.noise == "gumbel"):
        raise BadInput(
            f"{type(generator).__name__} draws many tokens in a step: leave out keep, window, compile and Gumbel noise."
        )
    return reveal


def reveal_of(generator: Generator, sampler: str | Mapping[str, Any] | None) -> Reveal | None:
    """The sampler of a draw, else the generator's own; None for a causal generator, which is drawn token by token.

    Raises:
        BadInput: a sampler for a causal generator, or a class that is no `Reveal`.
    """
    if generator.causal:
        if sampler is not None:
            raise BadInput(
                f"{type(generator).__name__} is causal and drawn token by token: leave out the sampler {sampler!r}."
            )
        return None
    chosen = generator.sampler if sampler is None else sampler
    block: Mapping[str, Any] = chosen if isinstance(chosen, Mapping) else {"class_path": chosen}
    target = import_class(str(block.get("class_path")))
    if not (inspect.isclass(target) and issubclass(target, Reveal)):
        raise BadInput(
            f"{block.get('class_path')} is no sampler: it must be a subclass of alitok.sampling.reveal.Reveal."
        )
    made: Reveal = build(dict(block))
    return made
