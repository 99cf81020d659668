"""An exponential moving average of the weights (EMA)."""

from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from alitok.common.errors import BadInput
from alitok.models.tokenizer import Tokenizer
from alitok.training.base import TrainingModule
from alitok.training.checkpoint import read_checkpoint
from alitok.training.parallel import is_sharded, whole
from alitok.training.records import StepRecord

SHARDED = (
    "An average of the weights cannot be kept while FSDP shards them; use the strategy DDP, or take"
    " trainer.callbacks.average out."
)


class WeightAverage(Callback):
    """Keeps an average of the model's weights and buffers over its updates, for validation and the artifact.

    The paper's recipes have none. To keep one, add experiments/options/average.yaml to a configuration.

    Args:
        decay: average <- decay x average + (1 - decay) x weights at each update of the model.

    Raises (when training begins):
        BadInput: the strategy shards the weights.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise BadInput(f"The average's decay must be in [0, 1), not {decay}.")
        self.decay = decay
        self.average: AveragedModel | None = None
        self._state: dict[str, Tensor] | None = None

    @property
    def average_model(self) -> nn.Module | None:
        """The averaged model, in eval mode; None before training begins."""
        return None if self.average is None else cast(nn.Module, self.average.module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = cast(TrainingModule, pl_module).model
        if is_sharded(model):
            raise BadInput(SHARDED)
        self._begin(model)

    def _begin(self, model: nn.Module) -> None:
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)
        if self._state is not None:
            self.average.load_state_dict(self._state)
            self._state = None
        self.average.requires_grad_(False).eval()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the average for `validate` and `test`: Lightning restores callbacks only for `fit`."""
        if self.average is None and trainer.ckpt_path:
            state = read_checkpoint(trainer.ckpt_path)["callbacks"].get(self.state_key, {})
            self.load_state_dict(state)
            if self._state is not None:
                self._begin(cast(TrainingModule, pl_module).model)

    on_test_start = on_validation_start

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        record: StepRecord = outputs["record"]
        if not record.discriminator:
            assert self.average is not None
            module = cast(TrainingModule, pl_module)
            self.average.update_parameters(module.model)
            if module.schedule.fits(record.step):  # the fit changed the ids' vectors, so their average is useless
                fitted = cast(Tokenizer, module.model).quantizer.state_dict()
                cast(Tokenizer, self.average.module).quantizer.load_state_dict(fitted)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.average is None else {"average": self.average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict.get("average")


def averaged(trainer: Trainer) -> nn.Module | None:
    """The average of the weights if a callback keeps one."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    kept = (callback.average_model for callback in callbacks if isinstance(callback, WeightAverage))
    return next((model for model in kept if model is not None), None)


def evaluated(trainer: Trainer, module: LightningModule) -> nn.Module:
    """The model to measure or export: the average if there is one, else the whole model, even if it is sharded.

    All processes must call it.
    """
    average = averaged(trainer)
    return whole(cast(TrainingModule, module).model) if average is None else average
