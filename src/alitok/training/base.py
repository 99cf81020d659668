"""The base of all LightningModules: schedule, logs, validation means, and the run's record in checkpoints."""

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from alitok.artifacts.folder import check_weights
from alitok.common.build import build_a
from alitok.common.devices import float32_products, warn_of_bfloat16
from alitok.common.distributed import all_sum
from alitok.common.errors import BadInput
from alitok.training.records import StepRecord, Window
from alitok.training.schedule import Moment, Schedule
from alitok.training.step import Player, first_places, optimizer_step
from alitok.training.terms import Terms

log = logging.getLogger("alitok")


class TrainingModule(L.LightningModule):
    """Base of the stages: schedule, seeds, micro-batches, strategy, learning rate.

    A loader's batch is this process's share of one global batch, and every batch ends in exactly one optimizer step.
    Therefore `trainer.global_step` counts batches, and checkpoints are written between global batches. Random numbers
    in a step (dropped classes, bottlenecks, random anchors) depend only on seed, step and place in the global batch.
    Dropout is the exception: it draws from torch's own generator, which is seeded for each micro-batch by seed, step
    and first place.

    A step whose loss or gradient is not finite changes nothing: no weights, moments or codebook. The `Health` callback
    reports it and decides whether to stop.

    Args:
        phases: name -> arguments of a phase (see `Schedule`).
        warmup_steps: updates over which the learning rate rises from 0.
        weight_decay, betas: arguments of AdamW.
        clip: largest norm of the gradient; None for no clipping.
        seed: seed of all random numbers in a step.
        activation_checkpointing: transformer blocks compute their activations again in the backward pass, which takes
            a third more time and much less memory, and changes nothing else.
        compile_blocks: transformer blocks are compiled (`torch.compile`): faster, mainly on a GPU, but with different
            rounding and different random numbers in dropout. "auto" = on a GPU if there is a compiler; blocks that do
            not compile run uncompiled.
        tf32: on a GPU float32 products in a step round their factors to ten bits, at six times the speed. The search
            for the nearest code does not.

    Attributes:
        kind: kind of artifact that it trains, "tokenizer" or "generator".
    """

    kind: str
    terms: Terms

    def __init__(
        self,
        phases: Mapping[str, Mapping[str, Any]],
        warmup_steps: int,
        weight_decay: float,
        betas: tuple[float, float],
        clip: float | None,
        seed: int,
        activation_checkpointing: bool = False,
        compile_blocks: bool | Literal["auto"] = "auto",
        tf32: bool = True,
    ) -> None:
        super().__init__()
        if clip is not None and clip <= 0:
            raise BadInput(f"model.clip must be above 0, not {clip}; null turns it off.")
        self.automatic_optimization = False
        self.schedule = Schedule(phases, warmup_steps)
        self.weight_decay = weight_decay
        self.betas = betas
        self.clip = clip
        self.seed = seed
        self.activation_checkpointing = activation_checkpointing
        self.compile_blocks = compile_blocks
        self.tf32 = tf32
        self.configuration: dict[str, Any] = {}  # the run's configuration, saved in checkpoints
        self.parents: dict[str, str] = {}  # digests of the artifacts from which the run starts, by name
        self.heads = nn.ModuleDict()  # trained parts of the loss terms; not part of the artifact
        self.resumed = False  # the fit continues from a checkpoint, so parts read no files
        self.parallel = False  # `parallelize` has run
        self.batch_ended = 0.0
        self._row: dict[str, Tensor | float] = {}
        self._window = Window()

    @property
    def model(self) -> nn.Module:
        """The trained model: the tokenizer or the generator."""
        raise NotImplementedError

    def extra_modules(self) -> dict[str, Any]:
        """Other modules with class blocks to write into the artifact."""
        return {}

    def player(self, moment: Moment) -> Player:
        """The player of this step."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        if str(self.trainer.precision).startswith("bf16"):
            warn_of_bfloat16(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Any]:
        # not on a CPU, where "high" does not mean TF32
        with float32_products(self.tf32) if self.device.type == "cuda" else nullcontext():
            self.record = optimizer_step(self, batch)
        self._log(self.record)
        return {"record": self.record}

    def reports(self, step: int) -> bool:
        """Whether the logs get a row at this step."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (step + 1) % every == 0

    def report(self, values: Mapping[str, Tensor | float]) -> None:
        """Adds values to this step's row of the logs. (Lightning's `log` would repeat them in all later rows.)"""
        self._row.update(values)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._row:
            row = {name: float(value) for name, value in self._row.items()}
            for logger in self.trainer.loggers:
                logger.log_metrics(row, self.record.step)
            self._row = {}
        self.batch_ended = time.perf_counter()  # after the callbacks: from here on the step waits for the next batch

    def _log(self, record: StepRecord) -> None:
        """Adds the step to the means since the last row of the logs; writes a row if one is due."""
        record.note(f"{'discriminator_' * record.discriminator}grad_norm", record.norm, 1.0)
        self._window.add(record)
        if not self.reports(record.step):
            return
        means = self._window.take()
        if "train/loss" in means:
            self.log("train/loss", means["train/loss"], logger=False)  # for the progress bar
        seen = (record.step + 1) * self.trainer.datamodule.global_batch  # type: ignore[attr-defined]
        self.report({**means, "train/lr": self.schedule.at(record.step).lr, "images_seen": seen})

    def note_validation(self, name: str, value: Tensor, count: int) -> None:
        """Adds the mean over `count` images to the mean over the split, which is logged as `val/NAME`."""
        value = value.detach().double() if value.device.type != "mps" else value.detach()
        total, images = self._validation.get(name, (0.0, 0))
        self._validation[name] = (total + value * count, images + count)

    def on_validation_epoch_start(self) -> None:
        self._validation: dict[str, tuple[Any, int]] = {}

    def on_validation_epoch_end(self) -> None:
        # Not by Lightning's sync_dist, which rounds the mean of the processes' counts down.
        for name, (total, count) in self._validation.items():
            sums = all_sum(torch.stack([total, torch.as_tensor(count).to(total)]))
            self.log(f"val/{name}", (sums[0] / sums[1]).float(), rank_zero_only=True)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["configuration"] = self.configuration
        checkpoint["parents"] = dict(self.parents)
        dropout = any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in self.modules())
        checkpoint["dropout_by"] = first_places(self.trainer) if dropout else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint fits the model, and warns if dropout will differ.

        Raises:
            BadInput: its weights do not fit, or the run's parents (tokenizer, stage 1) differ.
        """
        check_weights(checkpoint["state_dict"], self.state_dict(), "the checkpoint")
        if self.trainer.state.fn == "fit":
            for name, digest in checkpoint.get("parents", {}).items():
                if self.parents.get(name) != digest:
                    raise BadInput(
                        f"The run began with {name} {digest[:12]}, which is now {str(self.parents.get(name))[:12]}:"
                        " give it back, or train again in another folder."
                    )
            before, now = checkpoint.get("dropout_by"), first_places(self.trainer)
            if before not in (None, now) and self.global_rank == 0:
                log.warning(
                    "Dropout draws other masks from here on: the global batch is cut into %d micro-batches,"
                    " before into %d.",
                    len(now),
                    len(before),
                )


def build_with_block(block: Mapping[str, Any]) -> nn.Module:
    """Builds a model from its class block, and keeps the block as `module.block` for the artifact."""
    module: nn.Module = build_a(nn.Module, block)
    module.block = dict(block)  # type: ignore[assignment]
    return module
