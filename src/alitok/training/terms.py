"""The loss terms of a run: built from class blocks, weighted by the phase, summed over the decodings."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from alitok.common.build import build_a
from alitok.common.errors import BadInput
from alitok.losses.terms import LossTerm
from alitok.training.records import MicroBatch, StepRecord, Taps, tapped
from alitok.training.schedule import Moment, Schedule

TAKEN = {"loss", "nats", "gan", "discriminator", "grad_norm", "discriminator_grad_norm", "lr"}


class Terms(dict[str, LossTerm]):
    """Loss terms by name. A term that no phase uses is not built.

    Args:
        blocks: class blocks by name.
        model: the model of the terms' `taps` and heads.

    Attributes:
        heads: trained parts of the terms, by the term's name; not part of the artifact.
    """

    def __init__(self, blocks: Mapping[str, Any], schedule: Schedule, model: nn.Module) -> None:
        if taken := TAKEN & blocks.keys():
            raise BadInput(f"losses.{min(taken)}: the logs use this name for something else; name the term otherwise.")
        if taken := {name for name in blocks if "." in name or hasattr(nn.ModuleDict, name)}:
            raise BadInput(f"losses.{min(taken)}: torch takes no module of this name; name the term otherwise.")
        super().__init__({name: build_a(LossTerm, block) for name, block in blocks.items() if schedule.uses(name)})
        self.model = model
        self.heads = nn.ModuleDict()
        for name, term in self.items():
            term.attach(model)
            if term.head is not None:
                self.heads[name] = term.head

    def setup(self, device: torch.device, parts: int) -> None:
        """Sets up the terms.

        Args:
            parts: micro-batches of the global batch, over all devices.

        Raises:
            BadInput: a term couples the images of a batch that has several parts.
        """
        for name, term in self.items():
            term.setup(device)
            if term.whole_batch and parts > 1:
                raise BadInput(
                    f"losses.{name} couples the images of a batch, which is cut into {parts} parts;"
                    " train on one device with data.micro_batch null, or take the term out."
                )

    def named_heads(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of the trained parts."""
        for name, parameter in self.heads.named_parameters():
            yield f"heads.{name}", parameter

    def tapped(self) -> AbstractContextManager[Taps]:
        """Records the outputs of the modules in the terms' `taps`, inside the block."""
        return tapped(self.model, {path for term in self.values() for path in term.taps})

    def loss(self, part: MicroBatch, outputs: Mapping[str, Any], moment: Moment, record: StepRecord) -> Tensor:
        """The sum over terms and decodings of weight x term, (). Adds values and statistics to the record."""
        device = next(iter(part.batch.values())).device
        loss = torch.zeros((), device=device)
        for name, term in self.items():
            weight = moment.phase.weights.get(name, term.weight)
            if not weight:
                continue
            decodings = outputs.get("decodings") or [(1.0, outputs)]
            for number, (share, one) in enumerate(decodings):
                if number:
                    one = {**one, "first": decodings[0][1]}
                value, statistics = term.evaluate(part.batch, one, part.step)
                if statistics is not None:
                    record.statistics.setdefault(f"losses.{name}", []).append(statistics)
                value = value if share == 1.0 else share * value
                record.note(name, value, part.share)
                loss = loss + weight * value
        return loss

    def updates(self) -> dict[str, tuple[nn.Module, Callable[[Any], None]]]:
        """Each term's head and update, for `Player.updates`."""
        return {f"losses.{name}": (term.head or nn.Module(), term.update) for name, term in self.items()}
