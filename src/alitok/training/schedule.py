"""The schedule of phases: their length, learning rate, loss weights, and the turns of generator and discriminator."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from alitok.common.build import misfit, nearest
from alitok.common.errors import BadInput


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
        steps: number of batches; in an adversarial phase half of them are the discriminator's.
        lr: learning rate at the start and at the end, or one number for both.
        shape: curve from the first rate to the last.
        weights: loss weights by the term's name; other terms have their own weight (usually 1); 0 switches a term off.
        adversarial: batches alternate between the tokenizer and the discriminator; both update a codebook's clusters.
        quantize: False gives the decoder the latents themselves, without the codebook.
        trainable: parts that train, the others do not change; None for the module's `trainable`.
        fit: fit the quantizer, before the first step, to the latents of this many global batches.
    """

    steps: int
    lr: float | tuple[float, float]
    shape: Literal["linear", "cosine"] = "linear"
    weights: Mapping[str, float] = field(default_factory=dict)
    adversarial: bool = False
    quantize: bool = True
    trainable: list[str] | None = None
    fit: int = 0

    def updates(self, steps: int) -> int:
        """Updates of the model among the first `steps` batches. In an adversarial phase it has the first turn."""
        return (steps + 1) // 2 if self.adversarial else steps

    def rate(self, progress: float) -> float:
        """Learning rate at progress 0..1 through the phase."""
        start, end = self.lr if isinstance(self.lr, list | tuple) else (self.lr, self.lr)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return start + (end - start) * progress


@dataclass(frozen=True)
class Moment:
    """A step's phase, its learning rate, and whether it is the discriminator's turn."""

    name: str
    phase: Phase
    lr: float
    discriminator: bool


class Schedule:
    """Phases in the order of the YAML.

    Args:
        phases: name -> arguments of `Phase`.
        warmup_steps: updates over which the learning rate rises: its factor is n / warmup_steps at update n, from 0 on.
            The first phase's curve begins after them. The discriminator's rate has no warm-up.

    Raises:
        BadInput: there are no phases, a key is unknown, or a phase has no steps.
    """

    def __init__(self, phases: Mapping[str, Mapping[str, Any]], warmup_steps: int = 0) -> None:
        if not phases:
            raise BadInput("phases is empty: a run needs at least one phase with steps and lr.")
        if warmup_steps < 0:
            raise BadInput(f"warmup_steps must be 0 or more, not {warmup_steps}.")
        self.phases = {name: _parse(name, block, list(phases)) for name, block in phases.items()}
        self.warmup_steps = warmup_steps
        self.total_steps = sum(phase.steps for phase in self.phases.values())

    @property
    def adversarial(self) -> bool:
        """Whether any phase has a discriminator's turn."""
        return any(phase.adversarial for phase in self.phases.values())

    def uses(self, term: str) -> bool:
        """Whether a loss term has a weight other than 0 in any phase."""
        return any(phase.weights.get(term, 1.0) for phase in self.phases.values())

    def fits(self, step: int) -> int:
        """Number of global batches for fitting the quantizer before this step; 0 for no fit."""
        first = 0
        for phase in self.phases.values():
            if step == first:
                return phase.fit
            first += phase.steps
        return 0

    def at(self, step: int) -> Moment:
        """The moment of batch `step`, from 0. After the last step it is the last phase's end."""
        before = 0  # the model's updates in earlier phases: only these change the learning rate
        last = list(self.phases)[-1]
        for name, phase in self.phases.items():
            updates = phase.updates(phase.steps)
            if step < phase.steps or name == last:
                break
            before, step = before + updates, step - phase.steps
        turn = phase.adversarial and step % 2 == 1
        done = phase.updates(step)
        skip = max(0, self.warmup_steps - before)
        progress = min(1.0, max(0, done - skip) / max(1, updates - skip))
        lr = phase.rate(progress)
        if self.warmup_steps and not turn:
            lr *= min(1.0, (before + done) / self.warmup_steps)
        return Moment(name, phase, lr, turn)


def _parse(name: str, block: Mapping[str, Any], names: list[str]) -> Phase:
    known = [item.name for item in fields(Phase)]
    for key in block:
        if key not in known:
            raise BadInput(f"phases.{name} has no key {key!r}{nearest(key, known)}")
    if "steps" not in block or "lr" not in block:
        others = ", ".join(other for other in names if other != name)
        raise BadInput(f"phases.{name} needs steps and lr" + (f"; the other phases are {others}." if others else "."))
    if wrong := misfit(Phase, block):
        key, wanted = wrong
        raise BadInput(f"phases.{name}.{key} must be {wanted}, not {block[key]!r}.")
    phase = Phase(**block)
    if phase.steps < 1:
        raise BadInput(
            f"phases.{name}.steps must be at least 1, not {phase.steps}; remove a phase with `{name}: null`."
        )
    if phase.fit < 0:
        raise BadInput(f"phases.{name}.fit must be 0 (do not fit) or a number of batches, not {phase.fit}.")
    return phase
