"""Writes checkpoints between global batches, by step."""

import sys
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from alitok.common.errors import BadInput
from alitok.training.checkpoint import NAME, checkpoints, leftovers, set_aside_after
from alitok.training.parallel import check_replicas


class Checkpoints(Checkpoint):
    """Writes `step=N.ckpt` every `every_n_train_steps` and at the end, and keeps the newest ones.

    A run that continues from an older one sets those of later steps aside, as `step=N.ckpt.old`.

    Also writes one when SIGTERM stops a run, or the first Ctrl-C one of a single process. Before each checkpoint the
    processes compare their replicas.

    Args:
        dirpath: folder of the checkpoints.
        every_n_train_steps: steps between two checkpoints.
        keep: number of checkpoints to keep.

    Raises (in training, on every process):
        BadInput: a file cannot be written (older ones stay), or the replicas differ.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int = 1000, keep: int = 2) -> None:
        if every_n_train_steps < 1 or keep < 1:
            raise BadInput("Checkpoints: every_n_train_steps and keep must be at least 1.")
        self.folder = Path(dirpath)
        self.every = every_n_train_steps
        self.keep = keep
        self.saved: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved = trainer.global_step
        if trainer.is_global_zero:
            for path in leftovers(self.folder):
                path.unlink()
            for path in set_aside_after(self.folder, trainer.global_step):
                print(f"alitok: {path} is of a later step than {trainer.global_step:,} and set aside.", file=sys.stderr)

    def due(self, trainer: Trainer) -> bool:
        """Whether a checkpoint is written after the present step."""
        return trainer.global_step % self.every == 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self.due(trainer):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.training:
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes the checkpoint of the present step, unless it is already saved. All processes must call it."""
        step = trainer.global_step
        if self.saved == step:
            return
        check_replicas(module)
        failure: str | None = None
        try:
            trainer.save_checkpoint(self.folder / NAME.format(step=step), weights_only=False)
        except BadInput as error:
            failure = str(error)
            if not trainer.is_global_zero:
                raise
            trainer.strategy.barrier()  # the others wait at this barrier inside `save_checkpoint`
        failure = trainer.strategy.broadcast(failure)
        if failure is not None:
            raise BadInput(f"{failure.rstrip('.')}; {self._last()}")
        self.saved = step
        if trainer.is_global_zero:
            for path in checkpoints(self.folder)[self.keep :]:
                path.unlink(missing_ok=True)

    def _last(self) -> str:
        found = checkpoints(self.folder)
        return f"the last good checkpoint is {found[0]}." if found else "there is no checkpoint yet."
