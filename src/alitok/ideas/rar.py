"""Random orders in training, raster order when sampling: RAR (arXiv 2411.00776), and ORT's weights by step."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.shared.sub_codes import SubCodeGenerator
from alitok.models.generator import Cache, Generator
from alitok.models.seams import Order, Ordering


class RandomOrder(Order):
    """Each image is written in a uniformly random order with probability r, else in raster order.

    r is 1 up to the share `start` of the run, falls linearly to 0 at the share `end`, and stays 0. Which images, and
    the orders, depend on seed, step and the image's place in the global batch alone.

    The loss at step i of the N of a random order is weighted by first + (last - first) i / (N - 1) (ORT). Images in
    raster order keep the weight 1, and nothing is normalized afterwards.

    Args:
        start, end: shares of the run, 0 <= start <= end <= 1.
        permute: "all" tokens, or those of the "image" only, with the prefix first and in order.
        first, last: weight of the first and of the last step of a random order; 1 and 1 are RAR.

    Raises:
        BadInput: shares or weights outside these bounds, or another word for what is permuted.
    """

    def __init__(
        self,
        start: float = 0.5,
        end: float = 0.75,
        permute: Literal["all", "image"] = "all",
        first: float = 1.0,
        last: float = 1.0,
    ) -> None:
        if not 0 <= start <= end <= 1:
            raise BadInput(f"RandomOrder takes shares 0 <= start <= end <= 1 of the run, not {start} and {end}.")
        if permute not in ("all", "image"):
            raise BadInput(f"RandomOrder: permute must be all or image, not {permute!r}.")
        if min(first, last) < 0 or first + last == 0:
            raise BadInput(f"RandomOrder: the weights first and last must not be negative or both 0: {first}, {last}.")
        self.start, self.end, self.permute = start, end, permute
        self.first, self.last = first, last

    def probability(self, progress: float) -> float:
        """r at this share of the run."""
        if progress < self.start:
            return 1.0
        if progress >= self.end:
            return 0.0
        return (self.end - progress) / (self.end - self.start)

    def __call__(self, tokens: int, prefix: int, step: Step) -> Ordering:
        """The orders of the step's images, on the CPU.

        Raises:
            BadInput: only image tokens are to be permuted and there are none.
        """
        kept = prefix if self.permute == "image" else 0
        if kept == tokens:
            raise BadInput("RandomOrder: permute image finds no image tokens in this generator; set permute to all.")
        raster = torch.arange(tokens)
        uniform, rising = torch.ones(tokens), torch.linspace(self.first, self.last, tokens)
        probability, places, weights = self.probability(step.progress), [], []
        for place in step.places:
            generator = step.stream("random order", place)
            permuted = torch.rand(1, generator=generator, dtype=torch.float64) < probability
            shuffled = torch.cat([raster[:kept], kept + torch.randperm(tokens - kept, generator=generator)])
            places.append(torch.where(permuted, shuffled, raster))
            weights.append(torch.where(permuted, rising, uniform))
        weighted = (self.first, self.last) != (1.0, 1.0)
        return Ordering(places=torch.stack(places), weights=torch.stack(weights) if weighted else None)


class AnyOrderGenerator(SubCodeGenerator):
    """A generator that knows which place it writes next: a learned vector of that place is added to the input.

    The vectors are RAR's target-aware positions. Each token's own place is in the rotary angles. In raster order, so
    in sampling, vector i belongs to step i.

    Args:
        codebook_size: V, of a token or of a sub-code.
        sub_codes: S. 1 gives `Generator` with the vectors, more give `SubCodeGenerator` with them.
        combine: see `SubCodeGenerator`; without effect if S is 1.
        arguments: the other arguments of `Generator`.
    """

    ordered = True

    def __init__(
        self,
        codebook_size: int,
        sub_codes: int = 1,
        combine: Literal["sum", "concatenated"] = "sum",
        **arguments: Any,
    ) -> None:
        if sub_codes == 1:
            Generator.__init__(self, codebook_size, **arguments)
            self.combine = None
        else:
            super().__init__(codebook_size, sub_codes, combine, **arguments)
        width = self.embeddings.embedding_dim
        self.next_places = nn.Parameter(torch.randn(self.num_tokens, width) * 0.02)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """ids (B, T) or (B, T, S) -> (B, T, width)."""
        return super().embed_tokens(ids[..., None] if self.sub_codes == 1 else ids)

    def place(self, x: Tensor, order: Tensor | None) -> Tensor:
        """Adds to x (B, N, width) the vector of the place that follows, order[:, i] at i."""
        return x + (self.next_places[: x.shape[1]] if order is None else self.next_places[order])

    def step(self, x: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """As `Generator.step`, the vectors of the places `positions` added."""
        return super().step(x + self.next_places[positions], positions, cache)
