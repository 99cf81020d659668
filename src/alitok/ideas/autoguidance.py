"""Guidance by a weaker generator of the same tokens: a smaller one, or an earlier checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from alitok.artifacts.folder import load_generator
from alitok.common.errors import BadInput
from alitok.models.generator import Generator
from alitok.sampling.guidance import Branch, PowerCosine


@dataclass(frozen=True)
class WeakerGenerator(PowerCosine):
    """weak + s (strong - weak), s of power-cosine guidance (autoguidance: Karras et al. 2024, arXiv 2406.02507).

    The paper guides diffusion models; no measurement is published for LlamaGen, RAR or AliTok.

    Args:
        checkpoint: artifact of the weaker generator. A set of samples records only this path, so do not retrain it
            while a set is unfinished.
        scale, power: arguments of `PowerCosine`.
        label: label that the weaker generator gets: the "same" class, or "none".

    Raises:
        BadInput: no checkpoint, or an unknown label.
    """

    scale: float = 1.0
    checkpoint: str = ""
    label: Literal["same", "none"] = "same"

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise BadInput("WeakerGenerator needs the artifact of a generator: give checkpoint.")
        if self.label not in ("same", "none"):
            raise BadInput(f"WeakerGenerator: label must be same or none, not {self.label!r}.")

    @cached_property
    def _networks(self) -> dict[str, Generator]:
        """Device -> the weaker generator, loaded on first use."""
        return {}

    def branches(self, generator: Generator, labels: Tensor, seed: int, indices: Sequence[int]) -> list[Branch]:
        device = str(labels.device)
        if device not in self._networks:
            self._networks[device] = load_generator(self.checkpoint, device)
        weak = self._networks[device]
        if weak.num_classes != generator.num_classes:
            raise BadInput(
                f"{self.checkpoint} has {weak.num_classes} classes, the generator that is sampled"
                f" {generator.num_classes}; give one of the same classes."
            )
        theirs = labels if self.label == "same" else torch.full_like(labels, weak.num_classes)
        return [Branch(labels=labels), Branch(labels=theirs, generator=weak)]
