"""Data of a training step: micro-batches, the record for callbacks, taps and statistics."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from alitok.common.distributed import all_stack, all_sum
from alitok.common.errors import BadInput
from alitok.common.random import Step


@dataclass
class MicroBatch:
    """The part of a process's batch that its device computes at a time.

    Attributes:
        batch: tensors by name.
        share: its share of this process's batch, 0..1.
        step: step of the run, with the places of these images in the global batch.
        last: it is the last one of the batch.
    """

    batch: dict[str, Tensor]
    share: float
    step: Step
    last: bool


@dataclass
class StepRecord:
    """A step's record for callbacks. Tensors stay on the device, so that the host does not wait for them.

    Attributes:
        step: number of the batch, from 0.
        discriminator: it was the discriminator's turn.
        notes: means over this process's batch, by name.
        parts: (image indices, whether the loss is not finite) of each micro-batch.
        ids: token ids of each micro-batch.
        statistics: statistics of each micro-batch, by the name of their update in `Player.updates`; they have `merge`.
        norm: norm of the gradient, over all processes.
        bad: whether the norm or any process's loss is not finite; the step then changes no weight.
    """

    step: int
    discriminator: bool
    notes: dict[str, Tensor] = field(default_factory=dict)
    parts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    statistics: dict[str, list[Any]] = field(default_factory=dict)
    norm: Tensor = field(default_factory=lambda: torch.zeros(()))
    bad: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.bool))

    def note(self, name: str, value: Tensor, share: float) -> None:
        """Adds a micro-batch's value to the batch's mean."""
        self.notes[name] = self.notes.get(name, 0.0) + value.detach().float() * share


class Window:
    """Means of a run's notes since the last row of the logs, without steps that were not finite."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, record: StepRecord) -> None:
        """Adds the notes of a step."""
        good = (~record.bad).float()
        for name, value in record.notes.items():
            total, count = self.sums.get(name, (torch.zeros_like(value), torch.zeros_like(good)))
            self.sums[name] = (total + torch.where(record.bad, 0.0, value), count + good)

    def take(self) -> dict[str, Tensor]:
        """Returns the means over all processes as `train/NAME`, and begins the next row. A collective."""
        sums = all_sum(torch.stack([torch.stack(pair) for pair in self.sums.values()]))
        means = {f"train/{name}": total / count for name, (total, count) in zip(self.sums, sums, strict=True)}
        self.sums = {}
        return means


class Means(SimpleNamespace):
    """Sums by name of weighted batch means; `share` is the sum of the weights. They merge by adding."""

    def merge(self, other: "Means") -> "Means":
        return Means(**{name: value + vars(other)[name] for name, value in vars(self).items()})


class Taps(dict[str, list[Tensor]]):
    """Outputs of modules, by path: one tensor for each forward pass."""

    def join(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Adds the modules' outputs to `outputs` and to each decoding, and returns `outputs`."""
        for number, (_, one) in enumerate([(1.0, outputs), *outputs.get("decodings", [])]):
            turn = max(0, number - 1)  # `outputs` has those of the first decoding
            for path, seen in self.items():
                # a step may have passes without a gradient, e.g. GFT's
                if own := [tensor for tensor in seen if tensor.requires_grad] or seen:
                    one[path] = own[min(turn, len(own) - 1)]
        return outputs


@contextmanager
def tapped(model: nn.Module, paths: Iterable[str]) -> Iterator[Taps]:
    """Records the outputs of the modules at these paths inside the block.

    Raises:
        BadInput: the model has no such module.
    """
    seen = Taps((path, []) for path in paths)
    handles = []
    for path, values in seen.items():
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise BadInput(f"A loss term reads {path}, which {type(model).__name__} does not have.") from error
        handles.append(module.register_forward_hook(lambda _, __, output, values=values: values.append(output)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def merge_over_processes(parts: list[Any]) -> Any:
    """Merges the statistics of all micro-batches and processes in order, so that every process gets the same."""
    statistics = reduce(lambda a, b: a.merge(b), parts)
    gathered = {name: all_stack(value) for name, value in vars(statistics).items()}
    ranks = len(next(iter(gathered.values())))
    parts = [type(statistics)(**{name: value[rank] for name, value in gathered.items()}) for rank in range(ranks)]
    return reduce(lambda a, b: a.merge(b), parts)
