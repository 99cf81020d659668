"""The end of a run: the work after its last step, even if the run was stopped in between."""

import multiprocessing
from contextlib import nullcontext
from types import FrameType
from typing import Any

import lightning
import torch
from lightning import Callback, LightningModule
from lightning.pytorch.trainer.states import TrainerFn

from alitok.common.devices import Fetched, send
from alitok.common.distributed import all_sum
from alitok.common.ends import Terminated, end_of_run, first_interrupt, sigterm_postponed


class Exporter(Callback):
    """A callback that writes a run's result after its last validation.

    Attributes:
        measured: the step of the newest validation.
    """

    measured: int | None = None

    def write(self, trainer: lightning.Trainer) -> None:
        """Writes the result. All processes must call it."""
        raise NotImplementedError


class StopTogether(Callback):
    """Stops a fit of several processes after the same step in all of them, if one has received SIGTERM.

    The processes add their flags at every step and read the sum one step later, so that no device runs out of work.

    Attributes:
        agreed: whether the fit must stop now.
    """

    def __init__(self) -> None:
        self.agreed = False
        self._sum: Fetched | None = None

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.world_size > 1:
            flag = torch.tensor([float(trainer._signal_connector.received_sigterm)])
            before, self._sum = self._sum, Fetched(all_sum(send(flag, trainer.strategy.root_device)))
            self.agreed = before is not None and bool(before.get())


class Trainer(lightning.Trainer):
    """Lightning's trainer, with the end of a run after its last step: last validation, pictures, artifact.

    A run may be stopped after its last step. When it is resumed, Lightning calls no hooks of training, so a callback
    alone could not finish it.

    Raises (by fit):
        Terminated: the run was stopped before its last step (`max_time`, early stopping).
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._together = StopTogether()
        self.callbacks.insert(0, self._together)  # type: ignore[attr-defined]
        # Lightning's handler waits for the other processes wherever it interrupts this one, and each step of several
        # processes waits for the device to ask for the signal.
        self._signal_connector._sigterm_notifier_fn = self._note_sigterm  # type: ignore
        self.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore

    def _note_sigterm(self, number: int, frame: FrameType | None) -> None:
        connector, launcher = self._signal_connector, self.strategy.launcher
        if launcher is not None and not connector.received_sigterm:
            launcher.kill(number)
        connector.received_sigterm = True

    def _run_stage(self) -> Any:  # private: there is no public hook between the last step and the teardown
        resumed_at = self.global_step
        fits = self.state.fn == TrainerFn.FITTING
        # Only alone: the processes of a group get Ctrl-C at different steps.
        alone = fits and self.world_size == 1 and multiprocessing.parent_process() is None
        with sigterm_postponed(), first_interrupt(self._stop) if alone else nullcontext():
            results = super()._run_stage()
            if fits:
                self._finish(resumed_at)
                if alone and self.received_sigterm:  # a study must not begin its next fit
                    raise end_of_run()
        return results

    def _stop(self) -> None:
        self._signal_connector.received_sigterm = True

    @property
    def received_sigterm(self) -> bool:
        """Whether the run must stop. A fit finishes a validation first, since a checkpoint needs a whole one."""
        stops = self._together.agreed if self.world_size > 1 else super().received_sigterm
        return stops and not (self.state.fn == TrainerFn.FITTING and self.validating)

    def _finish(self, resumed_at: int) -> None:
        step = self.global_step
        if step < self.max_steps:
            if self.is_global_zero:
                print(f"{self.default_root_dir}: stopped at step {step:,} of {self.max_steps:,}.", flush=True)
            raise Terminated
        export = next((item for item in self.callbacks if isinstance(item, Exporter)), None)  # type: ignore[attr-defined]
        if resumed_at >= self.max_steps and self.is_global_zero:
            rest = "what follows the last step is made now" if export else "callbacks.artifact is off, so no artifact"
            print(f"{self.default_root_dir}: all {step:,} steps are done; {rest}.", flush=True)
        if export is None:
            return
        if export.measured != step:
            validation = self.fit_loop.epoch_loop.val_loop
            validation.restarting = False  # else it skips the batches that the checkpoint counted
            self.validating = True
            validation.run()
            self.training = True
        export.write(self)
