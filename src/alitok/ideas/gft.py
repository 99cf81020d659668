"""Guidance-free training (GFT, arXiv 2501.15420): guided logits are learned, so an image needs one row, not two."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import send
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.generator import Generator, in_order
from alitok.sampling.guidance import Branch, Guidance, PowerCosine

FREQUENCIES = 256


class GuidanceFreeGenerator(Generator):
    """A generator whose logits at temperature beta are those of guidance with scale 1 / beta.

    In training each image has a beta uniform in 0..1, drawn by seed, step and place; an image without a class has 1.
    The logits of the loss are beta f(x, class, beta) + (1 - beta) f(x, no class, 1), the second without gradient and
    dropout (GFT, algorithm 1). At beta = 1 this is the plain generator.

    beta enters as MLP(sinusoid(1000 beta)) - MLP(sinusoid(1000)), added to every input of the transformer. The paper
    adds only the first term. With the difference, beta = 1 adds nothing, so teacher forcing and sampling without
    guidance need no beta.

    Args:
        codebook_size: V.
        arguments: the other arguments of `Generator`.
    """

    def __init__(self, codebook_size: int, **arguments: Any) -> None:
        super().__init__(codebook_size, **arguments)
        width = self.embeddings.embedding_dim
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.temperature = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), last)

    def embed_beta(self, beta: Tensor) -> Tensor:
        """beta (...) in 0..1 -> (..., width), 0 if beta is 1."""
        rates = torch.exp(-math.log(10_000) * torch.arange(FREQUENCIES // 2, device=beta.device) / (FREQUENCIES // 2))
        angles = 1000 * torch.stack([beta.float(), torch.ones_like(beta, dtype=torch.float32)])[..., None] * rates
        mine, plain = self.temperature(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return mine - plain

    def losses(
        self,
        ids: Tensor,
        labels: Tensor,
        inputs: Tensor | None = None,
        order: Tensor | None = None,
        step: Step | None = None,
    ) -> dict[str, Tensor]:
        """As `Generator.losses`; in training the logits are those of GFT's mixture."""
        if not self.training or step is None:
            return super().losses(ids, labels, inputs, order, step)
        inputs = ids if inputs is None else inputs
        if order is not None:
            ids, inputs = (in_order(part, order) for part in (ids, inputs))
        drawn = torch.stack([torch.rand((), generator=step.stream("beta", place)) for place in step.places])
        beta = torch.where(labels == self.num_classes, 1.0, send(drawn, labels.device))
        self.eval()  # no dropout
        with torch.no_grad():
            plain = self.output(self.hidden(inputs, torch.full_like(labels, self.num_classes), order))
        self.train()
        hidden = self.hidden(inputs, labels, order, condition=self.embed_beta(beta)[:, None])
        share = beta[:, None, None]
        logits = share * self.output(hidden).float() + (1 - share) * plain.float()
        nats = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
        return {"hidden": hidden, "targets": ids, "inputs": inputs, "labels": labels, "nats": nats, "logits": logits}


@dataclass(frozen=True)
class GuidanceFree(Guidance):
    """One row of a `GuidanceFreeGenerator` at beta = 1 / s; s is power-cosine guidance's scale at each position.

    Args:
        scale, power: arguments of `PowerCosine`.
    """

    scale: float
    power: float = 1.0

    def branches(self, generator: Generator, labels: Tensor, seed: int, indices: Sequence[int]) -> list[Branch]:
        if not isinstance(generator, GuidanceFreeGenerator):
            raise BadInput("GuidanceFree takes a generator that was trained by GFT (experiments/ideas/gft.yaml).")
        places = torch.arange(generator.num_tokens, device=labels.device)
        scale = PowerCosine(self.scale, self.power).scale_at(places, generator.num_tokens)
        condition = generator.embed_beta((1 / scale.clamp(min=1)).float())
        return [Branch(labels=labels, condition=condition.expand(len(labels), -1, -1))]
