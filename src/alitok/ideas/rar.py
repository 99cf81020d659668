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

    r is 1 up to the share `start` of the run, falls linearly to 0 at the share `end`, and stays 0. The orders depend
    only on seed, step and the image's place in the global batch.

    In a random order the loss at step i of N has the weight first + (last - first) i / (N - 1) (ORT). Images in raster
    order have the weight 1, and weights are not normalized.

    Args:
        start, end: shares of the run, 0 <= start <= end <= 1.
        permute: "all" tokens, or only those of the "image", after the prefix in order.
        first, last: weights of the first and of the last step of a random order; RAR has 1 and 1.

    Raises:
        BadInput: shares or weights outside these bounds, or an unknown `permute`.
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
            BadInput: `permute` is "image" and there are no image tokens.
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
    """A generator whose input includes a learned vector of the place that it writes next.

    The vectors are RAR's target-aware positions. The rotary angles give each token's own place. In raster order, as in
    sampling, step i uses vector i.

    Args:
        codebook_size: V, number of codes of a token or of a sub-code.
        sub_codes: S. With 1 this extends `Generator`, with more `SubCodeGenerator`.
        combine: see `SubCodeGenerator`; no effect if S is 1.
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
        """Add to x (B, N, width) the vector of the next place, order[:, i] at i."""
        return x + (self.next_places[: x.shape[1]] if order is None else self.next_places[order])

    def step(self, x: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """As `Generator.step`, with the vectors of the places `positions` added."""
        return super().step(x + self.next_places[positions], positions, cache)
