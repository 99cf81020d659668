"""An exponential moving average of the weights (EMA)."""

from collections.abc import Iterator
from itertools import chain
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

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

    During a validation the model has the average's numbers, so whatever it computes is the average's. The paper's
    recipes have none. To keep one, add experiments/options/average.yaml to a configuration.

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
        self._swapped = False

    @property
    def average_model(self) -> nn.Module | None:
        """The averaged model, in eval mode; None before training begins, and while the model has its numbers."""
        return None if self.average is None or self._swapped else cast(nn.Module, self.average.module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = cast(TrainingModule, pl_module).model
        if is_sharded(model):
            raise BadInput(SHARDED)
        self._begin(model)

    def _begin(self, model: nn.Module) -> None:
        self.average = AveragedModel(model, use_buffers=True)
        if self._state is not None:
            self.average.load_state_dict(self._state)
            self._state = None
        self.average.requires_grad_(False).eval()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives the model the average's numbers. Lightning restores callbacks only for `fit`, so this does it too."""
        if self.average is None and trainer.ckpt_path:
            state = read_checkpoint(trainer.ckpt_path)["callbacks"].get(self.state_key, {})
            self.load_state_dict(state)
            if self._state is not None:
                self._begin(cast(TrainingModule, pl_module).model)
        if not self._swapped:
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._swapped:
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)

    on_test_start, on_test_end = on_validation_start, on_validation_end

    @torch.inference_mode()  # as Lightning validates
    def _swap(self, pl_module: LightningModule) -> None:
        if self.average is not None:
            # in place: strategies and optimizers hold the parameters
            for averaged, trained in self._pairs(cast(TrainingModule, pl_module).model):
                kept = averaged.clone()
                averaged.copy_(trained)
                trained.copy_(kept)
            self._swapped = not self._swapped

    def _pairs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter and buffer of the average with that of the model."""
        assert self.average is not None
        own = self.average.module
        return zip(chain(own.parameters(), own.buffers()), chain(model.parameters(), model.buffers()), strict=True)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        record: StepRecord = outputs["record"]
        if not record.discriminator:
            assert self.average is not None
            module = cast(TrainingModule, pl_module)
            self._update(module.model)
            if module.schedule.fits(record.step):  # the fit changed the ids' vectors, so their average is useless
                fitted = cast(Tokenizer, module.model).quantizer.state_dict()
                cast(Tokenizer, self.average.module).quantizer.load_state_dict(fitted)

    def _update(self, model: nn.Module) -> None:
        # not `update_parameters`: on a GPU it waits for the device, and it averages integers too
        assert self.average is not None
        pairs = list(self._pairs(model))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        if int(self.average.n_averaged) and moving:  # a CPU tensor
            own, new = zip(*moving, strict=True)
            torch._foreach_lerp_(own, new, 1 - self.decay)
            pairs = [pair for pair in pairs if not pair[0].is_floating_point()]
        for averaged, trained in pairs:
            averaged.copy_(trained)
        self.average.n_averaged += 1

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
