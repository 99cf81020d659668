"""The optimizer step of the tokenizer, the discriminator and the generator. Read it from top to bottom."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from alitok.common.distributed import all_sum
from alitok.common.random import Step, reseed
from alitok.training.parallel import average_gradients, clip_gradients, gradient_norm, synced_last
from alitok.training.records import MicroBatch, StepRecord, merge_over_processes
from alitok.training.schedule import Moment

if TYPE_CHECKING:
    from alitok.training.base import TrainingModule


@dataclass(frozen=True)
class Player:
    """The model that trains in a step: the tokenizer, its discriminator, or the autoregressive generator.

    Attributes:
        loss: (micro-batch, moment, record) -> scalar, the forward pass and the loss terms. It returns only the scalar,
            so that its other tensors are freed before the backward pass. See `tokenizer.py` and `generator.py`.
        model: the model that trains.
        optimizer: Lightning's wrapper of the optimizer of model and heads.
        updates: name in `StepRecord.statistics` -> (module, update). `update` applies the statistics of the global
            batch to the module's parameters and buffers in place.
        heads: trained parts of the loss terms.
        name: name of the loss in the logs.
        in_ddp: whether DDP, if it is the strategy, averages this model's gradients in the backward pass.
    """

    loss: Callable[[MicroBatch, Moment, StepRecord], Tensor]
    model: nn.Module
    optimizer: Any
    updates: Mapping[str, tuple[nn.Module, Callable[[Any], None]]]
    heads: nn.Module
    name: str = "loss"
    in_ddp: bool = True


def optimizer_step(module: "TrainingModule", batch: dict[str, Tensor]) -> StepRecord:
    """Trains on this process's share of one global batch. The host never waits for the device in here.

    If a loss or gradient is not finite on any process, the step changes no weights, optimizer state or buffers.
    """
    strategy: Any = module.trainer.strategy
    moment = module.schedule.at(module.trainer.global_step)
    record = StepRecord(module.trainer.global_step, moment.discriminator)
    player = module.player(moment)
    ddp = isinstance(strategy, DDPStrategy)

    for part in micro_batches(module, batch, record.step):
        loss = player.loss(part, moment, record)
        record.note(player.name, loss, part.share)
        if "index" in part.batch:
            record.parts.append((part.batch["index"], ~loss.detach().isfinite()))
        # DDP and FSDP2 communicate once, in the backward pass of the last micro-batch.
        synced = synced_last(strategy, player.model, part.last, player.in_ddp)
        # Some parts run in float32 on purpose. Under autocast the backward pass would round their gradients.
        with synced, torch.autocast(module.device.type, enabled=False):
            module.manual_backward(loss * part.share)
        del loss  # frees the graph

    model, heads = list(player.model.parameters()), list(player.heads.parameters())
    # DDP has averaged the model's gradients if `in_ddp`; FSDP2 has averaged all shards. This averages the rest.
    average_gradients(heads if ddp and player.in_ddp else model + heads)
    record.norm = gradient_norm(model + heads)
    nonfinite = torch.stack([~record.norm.isfinite(), *(flag for _, flag in record.parts)]).any()
    record.bad = all_sum(nonfinite.float()) > 0
    if module.clip is not None:
        clip_gradients(model + heads, record.norm, module.clip)

    for name, statistics in record.statistics.items():
        owner, update = player.updates[name]
        update_unless(record.bad, owner, update, merge_over_processes(statistics))
    record.statistics.clear()  # the record waits for the next row of the log, and these may be large

    for group in player.optimizer.param_groups:
        group["lr"] = moment.lr * group["lr_factor"]
    player.optimizer.optimizer.found_inf = record.bad.float()  # if 1, the fused kernel changes nothing
    player.optimizer.step()
    player.optimizer.zero_grad(set_to_none=True)
    return record


def micro_batches(module: Any, batch: dict[str, Tensor], number: int) -> Iterator[MicroBatch]:
    """Splits a batch into parts that fit on the device. Reseeds torch's generators before each.

    Dropout draws from torch's generators, so it depends on seed, step and the part's first place in the global batch.
    """
    data = module.trainer.datamodule
    size = len(next(iter(batch.values())))
    limit = data.micro_batch or size
    for start in range(0, size, limit):
        part = {name: value[start : start + limit] for name, value in batch.items()}
        count, first = len(next(iter(part.values()))), module.global_rank * size + start
        reseed(module.seed, "step", number, first, 0)  # the 0 keeps the random numbers of runs of version 0.1
        places = range(first, first + count)
        step = Step(module.seed, number, module.schedule.total_steps, data.global_batch, places)
        yield MicroBatch(part, count / size, step, start + limit >= size)


def first_places(trainer: Any) -> list[int]:
    """The first place in the global batch of every micro-batch of every process. Dropout depends on these."""
    share = trainer.datamodule.global_batch // trainer.world_size
    starts = range(0, share, trainer.datamodule.micro_batch or share)
    return [rank * share + start for rank in range(trainer.world_size) for start in starts]


def update_unless(bad: Tensor, module: nn.Module, update: Callable[[Any], None], statistics: Any) -> None:
    """Runs `update(statistics)`, and restores the module's tensors if `bad` (a bool on the device)."""
    tensors = [*module.parameters(), *module.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    update(statistics)
    with torch.no_grad():
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(bad, old, tensor))
