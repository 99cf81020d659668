"""A rich progress bar with steps and images seen."""

import sys
import time
from typing import Any, ClassVar, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from alitok.training.base import TrainingModule

VALIDATION = ("val/psnr", "val/loss", "val/token_accuracy")


class Progress(RichProgressBar):
    """Lightning's rich bar over all steps of the run (its loader has no end), with the phase and images seen.

    If the output is not a terminal, it prints plain lines instead, every `line_every` steps and at each validation.
    Numbers are fetched from the device only when the logs get a row and after a validation.

    Args:
        line_every: steps between plain lines.

    Attributes:
        follows: seconds of the work after the run, set by a command with several runs. The minutes left of all work are
            then shown.
    """

    follows: ClassVar[float | None] = None

    def __init__(self, line_every: int = 100) -> None:
        super().__init__(refresh_rate=1, leave=False)
        self.line_every = line_every
        self.trained: dict[str, str] = {}
        self.validated: dict[str, str] = {}
        self.began = (0, 0.0)  # step and time

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps

    def _get_train_description(self, current_epoch: int) -> str:
        return self.trainer.lightning_module.__class__.__name__.removesuffix("Training")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return self._training_facts(trainer, pl_module) | self.validated

    def _training_facts(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        phase = cast(TrainingModule, pl_module).schedule.at(trainer.global_step).name
        return {"phase": phase, "images": f"{images_seen(trainer):,}"} | self.trained | self._left(trainer)

    def _left(self, trainer: Trainer) -> dict[str, str]:
        step, start = self.began
        if self.follows is None or trainer.global_step <= step:
            return {}
        pace = (time.perf_counter() - start) / (trainer.global_step - step)
        left = (trainer.max_steps - trainer.global_step) * pace + self.follows
        return {"minutes left of all": f"{left / 60:.0f}"}

    def _line(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        if trainer.is_global_zero and not sys.stdout.isatty():
            said = "  ".join(f"{key} {value}" for key, value in facts.items())
            print(f"step {trainer.global_step}/{trainer.max_steps}  {said}", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = trainer.global_step, time.perf_counter()
        if trainer.is_global_zero:  # not at the start of fit, when the checkpoint's step is not restored yet
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
        module = cast(TrainingModule, pl_module)
        if module.reports(module.record.step):
            self.trained = measured(trainer, ("train/loss",))
        super().on_train_batch_end(trainer, pl_module, *args)
        if trainer.global_step % self.line_every == 0:
            self._line(trainer, self._training_facts(trainer, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = measured(trainer, VALIDATION)
        super().on_validation_end(trainer, pl_module)
        if self.validated and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._line(trainer, self.validated)


def measured(trainer: Trainer, names: tuple[str, ...]) -> dict[str, str]:
    """The newest values of these metrics, if they exist."""
    metrics = trainer.callback_metrics
    return {name: f"{float(metrics[name]):.4g}" for name in names if name in metrics}


def images_seen(trainer: Trainer) -> int:
    """Images on which the run has trained so far (not epochs: a token cache has ten views)."""
    return trainer.global_step * trainer.datamodule.global_batch  # type: ignore[attr-defined]
