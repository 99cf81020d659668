"""A rich progress bar that speaks of steps and images seen."""

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's rich bar over all steps of the run (its loader has no end), with the phase and images seen.

    Where the output is no terminal it prints a plain line now and then instead.

    Args:
        line_every: steps between plain lines.
    """

    def __init__(self, line_every: int = 100) -> None:
        super().__init__(refresh_rate=1, leave=False)
        self.line_every = line_every

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps

    def _get_train_description(self, current_epoch: int) -> str:
        return self.trainer.lightning_module.__class__.__name__.removesuffix("Training")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        items: dict[str, Any] = {}
        schedule: Any = getattr(pl_module, "schedule", None)
        if schedule is not None:
            items["phase"] = schedule.at(trainer.global_step).name
            items["images"] = f"{images_seen(trainer):,}"
        for name in ("train/loss", "val/psnr", "val/loss", "val/token_accuracy"):
            if name in trainer.callback_metrics:
                items[name] = f"{float(trainer.callback_metrics[name]):.4g}"
        return items

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:  # here, not at the fit's start: the step is that of the checkpoint by now
            data = trainer.datamodule  # type: ignore[attr-defined]
            share = data.global_batch // trainer.world_size
            micro = min(data.micro_batch or share, share)
            print(
                f"{trainer.default_root_dir}: steps {trainer.global_step:,} to {trainer.max_steps:,} on"
                f" {trainer.world_size} x {pl_module.device.type}, {trainer.precision};"
                f" global batch {data.global_batch}"
                f" = {trainer.world_size} devices x {-(-share // micro)} micro-batches of {micro}",
                flush=True,
            )
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        step = trainer.global_step
        if trainer.is_global_zero and not sys.stdout.isatty() and step % self.line_every == 0:
            facts = "  ".join(f"{key} {value}" for key, value in self.get_metrics(trainer, pl_module).items())
            print(f"step {step}/{trainer.max_steps}  {facts}", flush=True)


def images_seen(trainer: Trainer) -> int:
    """Images (not epochs: a token cache holds ten views) that the run has trained on so far."""
    return trainer.global_step * trainer.datamodule.global_batch  # type: ignore[attr-defined]
