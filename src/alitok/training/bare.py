"""A trainer for runs inside of a command: it leaves nothing behind."""

from typing import Any

from lightning import Trainer


def bare_trainer(steps: int, **arguments: Any) -> Trainer:
    """Lightning's trainer without logs, checkpoints, bars and validation.

    Args:
        steps: of the run.
        arguments: of `Trainer`, which go before these.
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
