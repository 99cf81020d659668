"""The moving average of the weights: what it is, that it resumes, and that the artifact holds it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback
from safetensors.torch import load_file
from tiny import GAN, tiny

from alitok.callbacks.average import WeightAverage, evaluated
from alitok.common.errors import BadInput
from alitok.models.quantizer import ClusteredQuantizer
from alitok.training.launch import run
from alitok.training.records import StepRecord

QUICK = ["--trainer.limit_val_batches", "0", "--trainer.callbacks.curves", "null", "--trainer.callbacks.grid", "null"]
QUICK += ["--trainer.logger.tensorboard", "null", "--model.warmup_steps", "0"]
PHASES = "{continuous: null, main: {steps: 2, lr: 1.e-3}, gan: {steps: 4, lr: 1.e-3, adversarial: true}}"
AVERAGE = [
    "--trainer.callbacks.average",
    "{class_path: alitok.callbacks.average.WeightAverage, init_args: {decay: 0.5}}",
]


def test_after_a_fit_the_average_has_the_fitted_codes() -> None:
    module: Any = torch.nn.Module()
    module.quantizer = ClusteredQuantizer(4, 2)
    callback = WeightAverage(0.5)
    callback._begin(module)
    callback._update(module)
    for fits, share in ((0, 0.5), (2, 1.0)):
        before = callback.average.module.quantizer.codebook.weight.clone()
        with torch.no_grad():
            module.quantizer.codebook.weight.add_(8)
        training: Any = SimpleNamespace(model=module, schedule=SimpleNamespace(fits=lambda step, fits=fits: fits))
        callback.on_train_batch_end(None, training, {"record": StepRecord(3, False)}, None, 0)  # type: ignore[arg-type]
        expected = torch.lerp(before, module.quantizer.codebook.weight, share)
        torch.testing.assert_close(callback.average.module.quantizer.codebook.weight, expected)


class Follow(Callback):
    """Averages by hand, and looks what is shown to metrics."""

    expected: Any = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        if outputs["record"].discriminator:
            return
        now = {name: tensor.clone() for name, tensor in pl_module.tokenizer.state_dict().items()}
        if Follow.expected is None:
            Follow.expected = now
        else:
            Follow.expected = {name: 0.5 * Follow.expected[name] + 0.5 * tensor for name, tensor in now.items()}
        shown = evaluated(trainer, pl_module).state_dict()
        for name, tensor in Follow.expected.items():
            torch.testing.assert_close(shown[name], tensor)


def fit(folder: Path, *options: str) -> dict[str, torch.Tensor]:
    run("fit", tiny("tokenizer-stage1", folder, *QUICK, *GAN, *AVERAGE, "--model.phases", PHASES, *options))
    file = folder / "stage1" / "artifact" / "model.safetensors"
    return load_file(file) if file.exists() else {}


def test_the_artifact_holds_the_average_and_resuming_changes_nothing(tmp_path: Path) -> None:
    Follow.expected = None
    whole = fit(tmp_path / "whole", "--trainer.callbacks.follow.class_path", "test_average.Follow")
    for name, tensor in Follow.expected.items():
        torch.testing.assert_close(whole[name], tensor)
    fit(tmp_path / "parts", "--trainer.max_steps", "3")
    parts = fit(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


class Counted(torch.nn.Module):
    """A weight, and a table of integers as in windowed attention."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([value]))
        self.register_buffer("table", torch.arange(600), persistent=False)


def test_integers_are_copied() -> None:
    callback, model = WeightAverage(0.9999), Counted(0.0)
    callback._begin(model)
    for _ in range(3):
        callback._update(model)
        model.weight.data += 1
    assert callback.average_model is not None
    assert torch.equal(callback.average_model.table, torch.arange(600))
    assert callback.average_model.weight.item() == pytest.approx(0.9999 * 1e-4 + 2e-4)


def test_a_failed_validation_gives_the_model_its_weights_back() -> None:
    callback, model = WeightAverage(0.5), Counted(1.0)
    trainer: Any = SimpleNamespace(ckpt_path=None)
    module: Any = SimpleNamespace(model=model)
    callback._begin(model)
    callback._update(Counted(3.0))
    callback.on_validation_start(trainer, module)
    assert model.weight.item() == 3
    assert callback.average_model is None
    callback.on_exception(trainer, module, ValueError())
    callback.on_exception(trainer, module, ValueError())
    assert (model.weight.item(), callback.average_model.weight.item()) == (1, 3)


def test_a_decay_out_of_range() -> None:
    with pytest.raises(BadInput, match=r"\[0, 1\)"):
        WeightAverage(1.0)
