"""Lightning's loggers without epochs, and functions that send them pictures, counts and text.

An endless loader has no epochs, and a token cache has ten views of an image.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor


class _Steps:
    """Leaves the epoch out of the logs."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        kept = {name: value for name, value in metrics.items() if name != "epoch"}
        super().log_metrics(kept, step)  # type: ignore[misc]


class CSV(_Steps, CSVLogger):
    """`metrics.csv`, a row per report."""


class TensorBoard(_Steps, TensorBoardLogger):
    """Event files for TensorBoard."""


class WandB(_Steps, WandbLogger):
    """Weights & Biases; needs `pip install 'alitok[wandb]'`."""


def show_picture(trainer: Trainer, name: str, path: Path, caption: str) -> None:
    """Sends a picture file to the run's loggers that accept pictures."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            with Image.open(path) as image:
                logger.experiment.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
            logger.experiment.add_text(f"{name}/caption", _encodable(caption), step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=step, caption=[_encodable(caption)])


def show_counts(trainer: Trainer, name: str, counts: Tensor) -> None:
    """Sends counts of the codes, (V,), as a histogram of log10(1 + count)."""
    values, step = np.log10(1 + counts.double().cpu().numpy()), trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(name, values, step)
        elif isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.log({name: wandb.Histogram(values), "trainer/global_step": step})


def show_text(trainer: Trainer, name: str, text: str) -> None:
    """Sends a text, e.g. the artifact's card."""
    text = _encodable(text)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            block = text.replace("\n", "\n    ")  # four leading spaces keep TensorBoard from joining the lines
            logger.experiment.add_text(name, f"    {block}", trainer.global_step)
        elif isinstance(logger, WandbLogger):
            logger.experiment.summary[name] = text


def show_configuration(trainer: Trainer, configuration: Mapping[str, Any]) -> None:
    """Sends the run's configuration to the loggers that list hyperparameters."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | WandbLogger):
            logger.log_hyperparams(_encodable_values(configuration))


def _encodable(text: str) -> str:
    """Writes bytes that are not UTF-8, in names of classes and files, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _encodable_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _encodable_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable_values(item) for item in value]
    return _encodable(value) if isinstance(value, str) else value
