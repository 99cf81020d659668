"""Classifier-free guidance: how conditional and unconditional logits are combined at each step."""

import math
from typing import Protocol

from torch import Tensor


class Guidance(Protocol):
    """A rule that combines the two branches, by step."""

    def __call__(self, conditional: Tensor, unconditional: Tensor, step: int, steps: int) -> Tensor:
        """Logits (B, V) of both branches at step `step` of `steps` -> logits (B, V)."""


class PowerCosine:
    """uncond + s (cond - uncond), s = 1 + (scale - 1)(1 - cos(pi (step / steps)^power)) / 2 (AliTok; MDT's schedule).

    Args:
        scale: of the last steps; the first step has scale 1.
        power: above 1 keeps guidance weak for longer.
    """

    def __init__(self, scale: float, power: float) -> None:
        self.scale = scale
        self.power = power

    def scale_at(self, step: int, steps: int) -> float:
        """The factor at step `step` of `steps`."""
        return 1 + (self.scale - 1) * (1 - math.cos(math.pi * (step / steps) ** self.power)) / 2

    def __call__(self, conditional: Tensor, unconditional: Tensor, step: int, steps: int) -> Tensor:
        return unconditional + self.scale_at(step, steps) * (conditional - unconditional)
