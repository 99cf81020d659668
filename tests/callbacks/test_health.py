"""Steps that are not finite, a codebook out of use, and no waiting for the device."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from tiny import DEMO, GAN, SMALL, module_of, tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alitok.callbacks.health import Health
from alitok.common.errors import BadInput
from alitok.config import compose_run
from alitok.losses.terms import LossTerm
from alitok.models.encoder import Encoder
from alitok.reports.curves import read_curves
from alitok.training.base import TrainingModule
from alitok.training.launch import run
from alitok.training.records import StepRecord

QUICK = ["--trainer.limit_val_batches", "0", "--trainer.callbacks.curves", "null", "--trainer.callbacks.grid", "null"]
QUICK += ["--trainer.logger.tensorboard", "null", "--model.warmup_steps", "0", "--data.micro_batch", "2"]
STEPS = ["--model.phases", "{continuous: null, main: {steps: 6, lr: 1.e-3, shape: linear}}"]
POISON = ["--model.losses.poison.class_path", "test_health.Poison"]


class Poison(LossTerm):
    """Not a number for the images with these indices, at this place: "loss" or only "gradient"."""

    images: tuple[int, ...] = ()
    place = "loss"

    def compute(self, batch: Any, outputs: Any, step: Any) -> Tensor:
        hit = torch.isin(batch["index"], torch.tensor(self.images or (-1,))).any()
        value = outputs["latents"].square().mean() * 0.0
        if self.place == "gradient" and bool(hit):
            return value.sqrt()  # 0, whose derivative is infinite
        return torch.where(hit, torch.nan, value) if self.place == "loss" else value


class Weights(Callback):
    """The weights, moments and codebook after each step."""

    kept: list[dict[str, Tensor]] = []  # noqa: RUF012 - read by the test; the command builds the callback
    indices: list[list[int]] = []  # noqa: RUF012

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.indices.append(batch["index"].tolist())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        state = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        for number, optimizer in enumerate(trainer.optimizers):
            for name, entries in optimizer.state_dict()["state"].items():
                state |= {f"{number}.{name}.{key}": value.clone() for key, value in entries.items()}
        self.kept.append(state)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    Weights.kept, Weights.indices = [], []
    yield
    Poison.images, Poison.place = (), "loss"


def fit(folder: Path, *options: str) -> None:
    watch = ["--trainer.callbacks.weights.class_path", "test_health.Weights"]
    run("fit", tiny("tokenizer-stage1", folder, *QUICK, *STEPS, *POISON, *watch, *options))


def order(folder: Path) -> list[list[int]]:
    """The image indices of each step, from a healthy run."""
    fit(folder)
    indices, Weights.kept, Weights.indices = Weights.indices, [], []
    return indices


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_a_bad_step_is_skipped_whole_and_named(place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches = order(tmp_path / "healthy")
    Poison.images, Poison.place = (batches[2][3],), place
    with caplog.at_level(logging.WARNING, "alitok"):
        skip = ["--trainer.callbacks.health.nonfinite", "skip", "--trainer.log_every_n_steps", "2"]
        fit(tmp_path / "bad", *skip)
    rows = [value for _, value in read_curves(tmp_path / "bad" / "stage1")["train/loss"]]
    assert len(rows) == 3
    assert all(map(math.isfinite, rows))  # a skipped step has no part in its row
    bad = [step for step, indices in enumerate(batches) if batches[2][3] in indices]
    for step in bad:
        assert equal(Weights.kept[step], Weights.kept[step - 1])
    assert not equal(Weights.kept[3], Weights.kept[2])
    assert all(tensor.isfinite().all() for tensor in Weights.kept[-1].values())
    (line,) = [line for line in caplog.messages if line.startswith("Step 2:")]
    culprits = batches[2][2:4] if place == "loss" else batches[2]  # a micro-batch of two
    assert f"images {', '.join(map(str, sorted(culprits)))} of the training split" in line
    assert ("the gradient is not finite" in line) == (place == "gradient")


def test_only_skips_in_a_row_end_a_run() -> None:
    health = Health("skip", most_skips=1)
    health.pending = [StepRecord(step, False, bad=torch.tensor(step % 2 == 0)) for step in range(7)]
    health.examine()
    health.pending = [StepRecord(step, False, bad=torch.tensor(True)) for step in range(2)]
    with pytest.raises(BadInput, match="not finite"):
        health.examine()


def test_a_bad_step_stops_the_run_and_the_checkpoint_before_is_good(tmp_path: Path) -> None:
    batches = order(tmp_path / "healthy")
    Poison.images = (batches[3][0],)
    often = ["--trainer.callbacks.checkpoint.every_n_train_steps", "1", "--trainer.callbacks.checkpoint.keep", "9"]
    with pytest.raises(
        BadInput, match=rf"Step \d: the loss is not finite; images .*{batches[3][0]}.* changed no weight"
    ):
        fit(tmp_path / "bad", *often)
    bad = min(step for step, indices in enumerate(batches) if batches[3][0] in indices)
    names = sorted(path.name for path in (tmp_path / "bad" / "stage1" / "checkpoints").iterdir())
    assert names == [f"step={step}.ckpt" for step in range(1, bad + 1)]
    Poison.images = ()
    fit(tmp_path / "bad")
    first, second = (torch.load(last_checkpoint(tmp_path / name))["state_dict"] for name in ("healthy", "bad"))
    assert equal(first, second)


def last_checkpoint(folder: Path) -> Path:
    return folder / "stage1" / "checkpoints" / "step=6.ckpt"


IDEAS = {  # what turns floats into indices, at the tiny size
    "fsq": ["--define.levels", "[4, 4, 2, 2]"],
    "lfq": ["--define.codebook_size", "16"],
    "wetok": ["--define.sub_codes", "2", "--define.codebook_size", "4"],
    "perturbation": ["--model.tokenizer.bottleneck.beta", "1.0", "--model.tokenizer.bottleneck.delta", "4"],
}


@pytest.mark.parametrize("idea", ["vq", *IDEAS])
def test_latents_that_are_not_finite_are_skipped_and_named(
    idea: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []
    forward = Encoder.forward

    def poisoned(self: Encoder, images: Tensor, step: Any) -> Tensor:
        calls.append(len(images))
        latents = forward(self, images, step)
        return latents * torch.nan if len(calls) == 6 else latents  # step 1, its second micro-batch of two

    monkeypatch.setattr(Encoder, "forward", poisoned)
    files = [DEMO / "tokenizer-stage1.yaml"]
    files += [DEMO.parent / "ideas" / f"{idea}.yaml"] if idea in IDEAS else []
    words = ["--define.run", str(tmp_path), *SMALL, *QUICK, *STEPS, *IDEAS.get(idea, [])]
    words += ["--trainer.callbacks.weights.class_path", "test_health.Weights"]
    words += ["--trainer.callbacks.health.nonfinite", "skip", "--trainer.callbacks.reconstruction", "null"]
    with caplog.at_level(logging.WARNING, "alitok"):
        run("fit", compose_run(files, words))
    assert equal(Weights.kept[1], Weights.kept[0])
    assert not equal(Weights.kept[2], Weights.kept[1])
    images = ", ".join(map(str, sorted(Weights.indices[1][2:4])))
    (line,) = [line for line in caplog.messages if line.startswith("Step ")]
    assert line == f"Step 1: the loss is not finite; images {images} of the training split; the step is skipped."


def test_too_many_skips_stop_the_run(tmp_path: Path) -> None:
    Poison.images = tuple(range(64))
    options = ["--trainer.callbacks.health.nonfinite", "skip", "--trainer.callbacks.health.most_skips", "2"]
    with pytest.raises(BadInput, match="3th step in a row"):
        fit(tmp_path, *options, "--trainer.log_every_n_steps", "1")


def test_a_bad_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"health\.init_args\.nonfinite must be stop or skip, not 'go'"):
        fit(
            tmp_path,
            "--trainer.callbacks.health",
            "{class_path: alitok.callbacks.health.Health, init_args: {nonfinite: go}}",
        )


def test_the_codebook_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = ["--trainer.log_every_n_steps", "2", "--trainer.callbacks.health.usage_alarm", "1.0"]
    still = ["--model.tokenizer.quantizer.clustering", "false", "--define.codebook_size", "30"]
    with caplog.at_level(logging.WARNING, "alitok"):
        fit(tmp_path, *options, *still)
    warnings = [line for line in caplog.messages if "of the codebook's 30 codes are in use" in line]
    assert len(warnings) == 1
    curves = read_curves(tmp_path / "stage1")
    assert [step for step, _ in curves["train/codebook_usage"]] == [1, 3, 5]
    assert all(0 < value < 1 for _, value in curves["train/codebook_usage"])
    assert all(1 <= value <= 30 for _, value in curves["train/codebook_perplexity"])


class NoWaiting(TorchDispatchMode):
    """Counts where a tensor's value is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_between_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    original = TrainingModule.training_step

    def step(self: TrainingModule, batch: Any, batch_index: int) -> Any:
        with NoWaiting() as mode:
            result = original(self, batch, batch_index)
        asked[result["record"].step] = mode.asked
        return result

    monkeypatch.setattr(TrainingModule, "training_step", step)
    phases = "{continuous: null, main: {steps: 2, lr: 1.e-3}, gan: {steps: 4, lr: 1.e-3, adversarial: true}}"
    fit(tmp_path, *GAN, "--model.phases", phases, "--model.clip", "1.0", "--trainer.log_every_n_steps", "100")
    assert asked == dict.fromkeys(range(6), 0)


def test_gradient_norm_is_the_norm(tmp_path: Path) -> None:
    config = tiny("tokenizer-stage1", tmp_path, *STEPS)
    module = module_of(config)
    from alitok.training.parallel import gradient_norm

    loss = sum(parameter.sin().sum() for parameter in module.parameters())
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters()]).norm()
    torch.testing.assert_close(gradient_norm(module.parameters()), expected)
