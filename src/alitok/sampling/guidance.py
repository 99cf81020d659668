"""Guidance: which sequences a generator computes for an image, and how their logits are combined."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alitok.common.build import build, import_class, known_arguments, nearest
from alitok.common.devices import widest_float
from alitok.common.draw import DEFAULT_SCHEDULE, Draw
from alitok.common.errors import BadInput
from alitok.models.generator import Generator


@dataclass(kw_only=True)
class Branch:
    """One of the sequences computed for an image; all have the same tokens.

    Attributes:
        labels: (B,) in [0, C].
        generator: the network that computes it; None for the one that is sampled. A different one must draw the same
            tokens with a head that has logits.
        condition: (B, N, width) or (B, 1, width), added to what the generator reads at each position; None for nothing.
        sources: (B, N) int64: position p stores the cached key and value of position sources[:, p] <= p. A position
            that is a source stores its own. None if each stores its own.
        value_weights: (B, N) confidences of the first branch, 0 for tokens still to come -> (B, N) factors on the
            tokens' values in the next step; None for 1. The label's value counts in full. It must depend on its
            argument only: a captured step keeps the function of the first batch.
    """

    labels: Tensor
    generator: Generator | None = None
    condition: Tensor | None = None
    sources: Tensor | None = None
    value_weights: Callable[[Tensor], Tensor] | None = None


class Guidance:
    """Which branches an image has, and how their logits are combined. This default is no guidance: one branch.

    A rule must not store data of a batch: on a GPU a captured step would read the first batch's data in later batches.
    Put what differs between images into a branch: its tensors are copied to the memory that the step reads.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "__call__" in cls.__dict__:  # rules for version 0.1 did
            raise BadInput(f"{cls.__name__} defines __call__, which nothing calls: a Guidance defines `combine`.")

    def branches(self, generator: Generator, labels: Tensor, seed: int, indices: Sequence[int]) -> list[Branch]:
        """The branches of B images, the same number and kind for every batch.

        Args:
            generator: the one that is sampled, prepared for inference.
            labels: (B,) on its device.
            seed, indices: decide the random numbers of a branch.
        """
        return [Branch(labels=labels)]

    def combine(self, logits: Sequence[Tensor], positions: Tensor, steps: int) -> Tensor:
        """Combine each branch's logits (n, V), or (n, S, V), into the logits to draw from.

        Args:
            positions: (n,) or (1,) int64, each row's position among the `steps` tokens, on their device.
        """
        return logits[0]


class Schedule(Guidance):
    """Classifier-free guidance: uncond + s (cond - uncond) with a scale s that depends on the position."""

    def branches(self, generator: Generator, labels: Tensor, seed: int, indices: Sequence[int]) -> list[Branch]:
        return [Branch(labels=labels), Branch(labels=torch.full_like(labels, generator.num_classes))]

    def scale_at(self, positions: Tensor | int, steps: int) -> Tensor:
        """The factor at these positions of `steps`, in the device's widest float type and their shape."""
        raise NotImplementedError

    def combine(self, logits: Sequence[Tensor], positions: Tensor, steps: int) -> Tensor:
        conditional, unconditional = logits
        scale = self.scale_at(positions, steps).to(conditional).view(-1, *[1] * (conditional.ndim - 1))
        return unconditional + scale * (conditional - unconditional)


@dataclass(frozen=True)
class PowerCosine(Schedule):
    """s = 1 + (scale - 1)(1 - cos(pi (position / steps)^power)) / 2 (AliTok; MDT's schedule).

    Args:
        scale: scale of the last steps; the first step has scale 1.
        power: above 1 keeps guidance weak for longer.
    """

    scale: float
    power: float = 1.0

    def scale_at(self, positions: Tensor | int, steps: int) -> Tensor:
        share = _wide(positions) / steps
        return 1 + (self.scale - 1) * (1 - torch.cos(math.pi * share**self.power)) / 2


@dataclass(frozen=True)
class Constant(Schedule):
    """s = scale at every step (Ho & Salimans 2022)."""

    scale: float

    def scale_at(self, positions: Tensor | int, steps: int) -> Tensor:
        return torch.full_like(_wide(positions), self.scale)


@dataclass(frozen=True)
class Linear(Schedule):
    """s = 1 + (scale - 1)(position + 1) / steps (ELM)."""

    scale: float

    def scale_at(self, positions: Tensor | int, steps: int) -> Tensor:
        return 1 + (self.scale - 1) * (_wide(positions) + 1) / steps


@dataclass(frozen=True)
class SoftCFG(PowerCosine):
    """Power-cosine guidance whose unconditional branch trusts confident tokens less (SoftCFG, ICLR 2026).

    In the unconditional branch the value of token i has the weight 1 - p_i / sum of p_j over the tokens before the step
    (step normalization: the weights taken away add up to one token); p_i is the largest conditional probability when
    token i was drawn. The class token's value counts in full.
    """

    def branches(self, generator: Generator, labels: Tensor, seed: int, indices: Sequence[int]) -> list[Branch]:
        conditional, unconditional = super().branches(generator, labels, seed, indices)
        unconditional.value_weights = self.value_weights
        return [conditional, unconditional]

    def value_weights(self, confidence: Tensor) -> Tensor:
        """(B, N) confidences, 0 for tokens still to come -> (B, N) factors on the values."""
        total = confidence.sum(1, keepdim=True).clamp_min(torch.finfo(confidence.dtype).tiny)
        return 1 - confidence / total


@dataclass(frozen=True)
class BySubCode(Guidance):
    """A rule for each of a token's sub-codes (WeTok: constant scales of 1.75, 1.8, 2 and 2), for logits (n, S, V).

    Args:
        rules: S rules; all must have the branches of the first.
    """

    rules: Sequence[Guidance]

    def branches(self, generator: Generator, labels: Tensor, seed: int, indices: Sequence[int]) -> list[Branch]:
        return self.rules[0].branches(generator, labels, seed, indices)

    def combine(self, logits: Sequence[Tensor], positions: Tensor, steps: int) -> Tensor:
        if logits[0].ndim != 3:
            raise BadInput("BySubCode takes a head that draws all sub-codes of a token at once: name another schedule.")
        by_code = zip(*(part.unbind(1) for part in logits), strict=True)
        pairs = zip(self.rules, by_code, strict=True)
        return torch.stack([rule.combine(parts, positions, steps) for rule, parts in pairs], dim=1)


SCHEDULES: dict[str, type[Schedule]] = {
    DEFAULT_SCHEDULE: PowerCosine,
    "constant": Constant,
    "linear": Linear,
    "softcfg": SoftCFG,
}


def guidance_of(draw: Draw) -> Guidance:
    """Build the draw's guidance: its schedule by name, class path or class block.

    The class gets the draw's scale and power if it takes them and the block does not set them. A scale of 0 then means
    no guidance.

    Raises:
        BadInput: an unknown name, or a class that is no `Guidance`.
    """
    block: Mapping[str, Any] = draw.schedule if isinstance(draw.schedule, Mapping) else {"class_path": draw.schedule}
    if "class_path" not in block or block.keys() - {"class_path", "init_args"}:
        raise BadInput(f"The guidance schedule {dict(block)} must be a map with class_path and init_args.")
    target = guidance_class(block["class_path"])
    own = dict(block.get("init_args") or {})
    given = {key: value for key, value in (("scale", draw.guidance), ("power", draw.power)) if key not in own}
    taken = known_arguments(target)
    given = {key: value for key, value in given.items() if taken is None or key in taken}
    if given.get("scale") == 0:
        return Guidance()
    rule: Guidance = build({"class_path": f"{target.__module__}.{target.__qualname__}", "init_args": given | own})
    return rule


def guidance_class(name: str) -> type[Guidance]:
    """The class that a name in `SCHEDULES` or a class path stands for."""
    if name in SCHEDULES:
        return SCHEDULES[name]
    if "." not in name:
        known = ", ".join(SCHEDULES)
        raise BadInput(f"No guidance schedule {name!r}; there are {known}{nearest(name, SCHEDULES)}")
    target = import_class(name)
    if not (inspect.isclass(target) and issubclass(target, Guidance)):
        raise BadInput(f"{name} is no guidance: it must be a subclass of alitok.sampling.guidance.Guidance.")
    return target


def _wide(positions: Tensor | int) -> Tensor:
    positions = torch.as_tensor(positions)
    return positions.to(widest_float(positions.device))
