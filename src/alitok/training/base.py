"""What all LightningModules share: one training step is one global batch, split into micro-batches."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from alitok.common.build import build
from alitok.common.random import reseed
from alitok.training.schedule import Moment, Schedule


class TrainingModule(L.LightningModule):
    """Base of the stages: schedule, seeds, micro-batches, learning rate.

    A loader's batch is this process's share of one global batch, and every batch ends in exactly one optimizer step, so
    `trainer.global_step` counts batches, checkpoints fall between global batches, and what is random in a step
    (dropout, dropped classes, bottlenecks) is a function of seed, step, process and micro-batch.

    Args:
        phases: the schedule, by name (see `Schedule`).
        warmup_steps: updates over which the learning rate rises from 0.
        weight_decay, betas: of AdamW.
        clip: largest norm of the gradient; None for no clipping.
        seed: of everything random in a step.
    """

    def __init__(
        self,
        phases: Mapping[str, Mapping[str, Any]],
        warmup_steps: int,
        weight_decay: float,
        betas: tuple[float, float],
        clip: float | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.schedule = Schedule(phases, warmup_steps)
        self.weight_decay = weight_decay
        self.betas = betas
        self.clip = clip
        self.seed = seed

    def micro_batches(self, batch: dict[str, Tensor], step: int) -> Iterator[tuple[dict[str, Tensor], float]]:
        """Parts of the batch that one device can hold, each with its share of the batch; reseeds before each."""
        size = len(next(iter(batch.values())))
        limit = getattr(self.trainer.datamodule, "micro_batch", None) or size  # type: ignore[attr-defined]
        for index, start in enumerate(range(0, size, limit)):
            reseed(self.seed, "step", step, self.global_rank, index)
            part = {name: value[start : start + limit] for name, value in batch.items()}
            yield part, len(next(iter(part.values()))) / size

    def optimize(self, index: int, moment: Moment, parameters: Iterable[nn.Parameter]) -> None:
        """Steps optimizer `index` at the moment's learning rate, after clipping, and clears the gradients."""
        optimizers = self.optimizers()
        optimizer: Any = optimizers[index] if isinstance(optimizers, list) else optimizers
        if self.clip is not None:
            norm = nn.utils.clip_grad_norm_(parameters, self.clip)
            self.log("train/grad_norm", norm)
        for group in optimizer.param_groups:
            group["lr"] = moment.lr * group["lr_factor"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.log("train/lr", moment.lr)


def build_on(block: Mapping[str, Any], device: torch.device | None = None) -> nn.Module:
    """Builds a model from its configuration block; remembers the block, which the artifact is written with."""
    with torch.device(device or "cpu"):
        module: nn.Module = build(block)
    module.block = dict(block)  # type: ignore[assignment]
    return module
