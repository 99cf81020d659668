"""Detects silent failures: numbers that are not finite, codes that are no longer used."""

import logging
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from alitok.callbacks.checkpoints import Checkpoints
from alitok.common.distributed import all_sum, is_distributed, rank, world_size
from alitok.common.errors import BadInput
from alitok.evaluation.tokens import usage_and_perplexity
from alitok.training.base import TrainingModule
from alitok.training.records import StepRecord

log = logging.getLogger("alitok")


class Health(Callback):
    """Checks training steps, every `log_every_n_steps` and before each checkpoint.

    A step whose loss or gradient is not finite has changed no weight (see `TrainingModule`). This callback names its
    images and stops the run, or lets it continue without that step. For tokenizers it logs `train/codebook_usage`
    (share of the codes chosen since the last report) and `train/codebook_perplexity`.

    Args:
        nonfinite: "stop" or "skip".
        most_skips: the most skipped steps in a row; one more stops the run.
        usage_alarm: warn if a smaller share of the codebook is in use; 0 for never.

    Raises (in training, on every process):
        BadInput: a step was not finite.
    """

    def __init__(
        self, nonfinite: Literal["stop", "skip"] = "stop", most_skips: int = 10, usage_alarm: float = 0.25
    ) -> None:
        if nonfinite not in ("stop", "skip"):
            raise BadInput(f"Health: nonfinite must be stop or skip, not {nonfinite!r}.")
        self.nonfinite = nonfinite
        self.most_skips = most_skips
        self.usage_alarm = usage_alarm
        self.pending: list[StepRecord] = []
        self.in_a_row = 0
        self.counts: Tensor | None = None
        self.alarmed = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        record: StepRecord = outputs["record"]
        self.pending.append(record)
        module = cast(TrainingModule, pl_module)
        if record.ids:
            self._count(module, record.ids)
        written = module.reports(record.step)
        if written and self.counts is not None:
            self._report_usage(module, record.step)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        saved = any(isinstance(callback, Checkpoints) and callback.due(trainer) for callback in callbacks)
        if written or saved:
            self.examine()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.examine()

    def examine(self) -> None:
        """Checks that the steps since the last call were finite. All processes must call it."""
        records, self.pending = self.pending, []
        if not records:
            return
        flags = torch.stack([record.bad for record in records]).tolist()
        for record, bad in zip(records, flags, strict=True):
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if not bad:
                continue
            sentence = f"Step {record.step:,}: {_culprits(record)}"
            if self.nonfinite == "stop":
                raise BadInput(
                    f"{sentence}; the step changed no weight. Look at these images, lower the learning rate, or set"
                    " trainer.callbacks.health.nonfinite to skip, and continue with the same command."
                )
            if self.in_a_row > self.most_skips:
                raise BadInput(f"{sentence}; that is the {self.in_a_row}th step in a row that had to be skipped.")
            _warn(f"{sentence}; the step is skipped.")

    def _count(self, module: TrainingModule, ids: list[Tensor]) -> None:
        tokenizer: Any = module.model
        groups, size = tokenizer.sub_codes, tokenizer.codebook_size
        if self.counts is None:
            self.counts = torch.zeros(groups * size, dtype=torch.int64, device=ids[0].device)
        for part in ids:
            flat = (part.reshape(-1, groups) + torch.arange(groups, device=part.device) * size).flatten()
            # not bincount, which makes the host wait for the device
            self.counts.scatter_add_(0, flat, torch.ones_like(flat))

    def _report_usage(self, module: TrainingModule, step: int) -> None:
        assert self.counts is not None
        tokenizer: Any = module.model
        counts = all_sum(self.counts).view(-1, tokenizer.codebook_size)
        self.counts = None
        used, perplexity = usage_and_perplexity(counts)
        module.report({"train/codebook_usage": used, "train/codebook_perplexity": perplexity})
        enough = int(counts[0].sum()) >= 10 * tokenizer.codebook_size
        low = enough and float(used) < self.usage_alarm and module.schedule.at(step).phase.quantize
        if low and not self.alarmed:
            _warn(
                f"Step {step:,}: only {float(used):.1%} of the codebook's {tokenizer.codebook_size:,} codes are in use"
                f" (alarm below {self.usage_alarm:.0%}, perplexity {float(perplexity):,.0f})."
            )
        self.alarmed = low


def _culprits(record: StepRecord) -> str:
    """A sentence with the images, of all processes, whose loss is not finite."""
    mine = [int(index) for indices, bad in record.parts if bool(bad) for index in indices.tolist()]
    everyone: list[list[int]] = [mine]
    if is_distributed():
        everyone = [[] for _ in range(world_size())]
        dist.all_gather_object(everyone, mine)
    images = sorted(index for indices in everyone for index in indices)
    what = "the loss is not finite"
    if not images:
        what = f"the gradient is not finite (norm {float(record.norm)}), though every loss is"
        images = sorted(int(index) for indices, _ in record.parts for index in indices.tolist())
    shown = ", ".join(map(str, images[:32])) + (f" and {len(images) - 32} more" if len(images) > 32 else "")
    return f"{what}; images {shown} of the training split"


def _warn(sentence: str) -> None:
    if rank() == 0:
        log.warning(sentence)
