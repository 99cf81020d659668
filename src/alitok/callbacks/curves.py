"""Draws the curves of a run, at each validation and at its end."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from alitok.reports.curves import plot_curves, read_curves


class Curves(Callback):
    """Writes `curves.png` into the run's folder at each validation and at the end."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
        curves = read_curves(trainer.default_root_dir)
        if curves:
            plot_curves(curves, Path(trainer.default_root_dir) / "curves.png")
