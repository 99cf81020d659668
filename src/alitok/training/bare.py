"""A trainer for runs inside a command, which writes no files."""

from typing import Any

from lightning import Trainer


def bare_trainer(steps: int, **arguments: Any) -> Trainer:
    """Lightning's trainer without logs, checkpoints, progress bars and validation.

    Args:
        steps: steps of the run.
        arguments: other arguments of `Trainer`, which override these.
    """
    bare: dict[str, Any] = {
        "max_steps": steps,
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "use_distributed_sampler": False,
    }
    return Trainer(**bare | arguments)
