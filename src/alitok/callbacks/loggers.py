"""Lightning's loggers without epochs: an endless loader has none, and a token cache holds ten views of an image."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger


class _Steps:
    """Leaves the epoch out of what is logged."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        kept = {name: value for name, value in metrics.items() if name != "epoch"}
        super().log_metrics(kept, step)  # type: ignore[misc]


class CSV(_Steps, CSVLogger):
    """`metrics.csv`, a row a report."""


class TensorBoard(_Steps, TensorBoardLogger):
    """Event files for TensorBoard."""


class WandB(_Steps, WandbLogger):
    """Weights & Biases; needs `pip install 'alitok[wandb]'`."""
