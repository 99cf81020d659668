"""Classifier-free guidance: how conditional and unconditional logits are combined at each step."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from alitok.common.build import nearest
from alitok.common.devices import widest_float
from alitok.common.errors import BadInput

DEFAULT_SCHEDULE = "power-cosine"


class Guidance(Protocol):
    """A rule that combines the two branches, by step.

    A rule that also wants to change what the unconditional branch reads of its cache has a method
    `value_weights(confidence)`: (B, N) largest conditional probability of each token when it was drawn, 0 for tokens
    still to come -> (B, N) factors on the tokens' values in the next step.
    """

    def __call__(self, conditional: Tensor, unconditional: Tensor, step: Tensor, steps: int) -> Tensor:
        """Logits of both branches at step `step` (an int, or a tensor (1,) on their device) -> logits.

        All (B, V), or (B, S, V) where a token has sub-codes.
        """


class Schedule:
    """uncond + s (cond - uncond) with a scale s that depends on the step."""

    def scale_at(self, step: Tensor | int, steps: int) -> Tensor:
        """The factor at step `step` of `steps`, in the device's widest float type, shape of `step`."""
        raise NotImplementedError

    def __call__(self, conditional: Tensor, unconditional: Tensor, step: Tensor | int, steps: int) -> Tensor:
        scale = self.scale_at(torch.as_tensor(step, device=conditional.device), steps)
        return unconditional + scale.to(conditional) * (conditional - unconditional)


@dataclass(frozen=True)
class PowerCosine(Schedule):
    """s = 1 + (scale - 1)(1 - cos(pi (step / steps)^power)) / 2 (AliTok; MDT's schedule).

    Args:
        scale: of the last steps; the first step has scale 1.
        power: above 1 keeps guidance weak for longer.
    """

    scale: float
    power: float = 1.0

    def scale_at(self, step: Tensor | int, steps: int) -> Tensor:
        share = _wide(step) / steps
        return 1 + (self.scale - 1) * (1 - torch.cos(math.pi * share**self.power)) / 2


@dataclass(frozen=True)
class Constant(Schedule):
    """s = scale at every step (Ho & Salimans 2022)."""

    scale: float

    def scale_at(self, step: Tensor | int, steps: int) -> Tensor:
        return torch.full_like(_wide(step), self.scale)


@dataclass(frozen=True)
class Linear(Schedule):
    """s = 1 + (scale - 1)(step + 1) / steps (ELM)."""

    scale: float

    def scale_at(self, step: Tensor | int, steps: int) -> Tensor:
        return 1 + (self.scale - 1) * (_wide(step) + 1) / steps


@dataclass(frozen=True)
class SoftCFG(PowerCosine):
    """Power-cosine guidance whose unconditional branch trusts confident tokens less (SoftCFG, ICLR 2026).

    In the unconditional branch the value of token i counts 1 - p_i / sum of p_j over the tokens before the step (step
    normalisation: the weights taken away add up to one token); p_i is the largest conditional probability when token i
    was drawn. The class token's value counts in full.
    """

    def value_weights(self, confidence: Tensor) -> Tensor:
        """(B, N) confidences, 0 for tokens still to come -> (B, N) factors on the values."""
        total = confidence.sum(1, keepdim=True).clamp_min(torch.finfo(confidence.dtype).tiny)
        return 1 - confidence / total


@dataclass(frozen=True)
class BySubCode:
    """A rule for each of a token's sub-codes (WeTok: constant scales of 1.75, 1.8, 2 and 2), for logits (B, S, V).

    Args:
        rules: S of them.
    """

    rules: tuple[Guidance, ...]

    def __call__(self, conditional: Tensor, unconditional: Tensor, step: Tensor, steps: int) -> Tensor:
        pairs = zip(self.rules, conditional.unbind(1), unconditional.unbind(1), strict=True)
        return torch.stack([rule(with_class, without, step, steps) for rule, with_class, without in pairs], dim=1)


SCHEDULES: dict[str, type[Schedule]] = {
    DEFAULT_SCHEDULE: PowerCosine,
    "constant": Constant,
    "linear": Linear,
    "softcfg": SoftCFG,
}


def make_guidance(schedule: str, scale: float, power: float = 1.0) -> Guidance | None:
    """The rule of a name in `SCHEDULES`; None (no guidance) for a scale of 0. `power` is for those that have one.

    Raises:
        BadInput: an unknown name, a negative or infinite scale, a power that is not positive.
    """
    if schedule not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise BadInput(f"No guidance schedule {schedule!r}; there are {known}{nearest(schedule, SCHEDULES)}.")
    if not (math.isfinite(scale) and scale >= 0):
        raise BadInput(f"The guidance scale must be 0 (none) or more, not {scale}.")
    if not (math.isfinite(power) and power > 0):
        raise BadInput(f"The guidance power must be above 0, not {power}.")
    if scale == 0:
        return None
    rule = SCHEDULES[schedule]
    arguments = {"scale": float(scale)}
    return rule(**arguments, **({"power": float(power)} if issubclass(rule, PowerCosine) else {}))


def _wide(step: Tensor | int) -> Tensor:
    step = torch.as_tensor(step)
    return step.to(widest_float(step.device))
