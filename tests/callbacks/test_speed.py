"""Images per second, waiting for data, utilization."""

import csv
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from tiny import GAN, tiny
from torch.utils._python_dispatch import _get_current_dispatch_mode

from alitok.callbacks import speed as speed_module
from alitok.callbacks.speed import Speed
from alitok.data.batches import ImageBatches
from alitok.reports.curves import read_curves
from alitok.training.launch import run

QUICK = [
    "--trainer.callbacks.curves",
    "null",
    "--trainer.callbacks.grid",
    "null",
    "--trainer.logger.tensorboard",
    "null",
]
QUICK += ["--trainer.log_every_n_steps", "2", "--trainer.callbacks.speed.peak_flops", "1.e+9"]
PHASES = "{continuous: null, main: {steps: 4, lr: 1.e-3}, gan: {steps: 4, lr: 1.e-3, adversarial: true}}"


def test_what_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: dict[Any, int] = {}
    original = Speed.on_train_end

    def keep(self: Speed, *args: Any) -> None:
        counted.update(self.flops)
        original(self, *args)

    def slow(self: ImageBatches, slots: Any) -> Any:
        time.sleep(0.05)
        return read(self, slots)

    read = ImageBatches.__getitem__
    monkeypatch.setattr(ImageBatches, "__getitem__", slow)
    monkeypatch.setattr(Speed, "on_train_end", keep)
    begun = time.perf_counter()
    config = tiny(
        "tokenizer-stage1", tmp_path, *QUICK, *GAN, "--model.phases", PHASES, "--trainer.val_check_interval", "4"
    )
    run("fit", config)
    seconds = time.perf_counter() - begun
    curves = read_curves(tmp_path / "stage1")
    assert [step for step, _ in curves["speed/images_per_second"]] == [1, 3, 5, 7]
    assert all(8 * 8 / seconds < value < 8 / 0.05 for _, value in curves["speed/images_per_second"])
    assert all(0 < value < 1 for _, value in curves["speed/data_wait"])
    reports = zip(curves["speed/data_wait"], curves["speed/images_per_second"], strict=True)
    waited = sum(share * 2 * 8 / rate for (_, share), (_, rate) in reports)
    assert waited > 6 * 0.05  # seconds, of at least 0.05 for each of 8 batches, the first of which is not counted
    # a window with the first step of a kind has none yet; see below
    assert [step for step, _ in curves["speed/utilisation"]] == [1, 3, 7]
    assert all(value > 0 for _, value in curves["speed/utilisation"])
    # three kinds of steps; the discriminator's has no backward pass through the tokenizer
    assert set(counted) == {("main", False), ("gan", False), ("gan", True)}
    assert counted["gan", False] > counted["main", False] > 0
    # forward and twice as much backward, two operations a weight and token: 25,000 weights, about 20 tokens of 8 images
    assert 0.3 < counted["main", False] / (6 * 25_000 * 20 * 8) < 3


def test_pictures_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    for number in range(40):
        file = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(file)
    for number in (7, 8):
        (tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png").write_bytes(b"no picture")
    options = ["--data.source", str(tmp_path / "pictures"), "--data.val_fraction", "0.1", "--data.val_count", "null"]
    phases = "{continuous: null, main: {steps: 10, lr: 1.e-3}}"
    run("fit", tiny("tokenizer-stage1", tmp_path, *QUICK, *options, "--model.phases", phases))
    counts = [value for _, value in read_curves(tmp_path / "stage1")["data/skipped_images"]]
    assert counts == sorted(counts)
    assert 1 <= counts[-1] <= 2


def test_logs_speak_of_steps_and_images(tmp_path: Path) -> None:
    run(
        "fit",
        tiny("tokenizer-stage1", tmp_path, *QUICK, "--model.phases", "{continuous: null, main: {steps: 4, lr: 1.e-3}}"),
    )
    (file,) = (tmp_path / "stage1").glob("logs/*/metrics.csv")
    with open(file, newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert "epoch" not in rows[0]
    assert [(int(row["step"]), float(row["images_seen"])) for row in rows if row["images_seen"]] == [
        (1, 16.0),
        (3, 32.0),
    ]
    assert {"train/grad_norm", "train/lr", "train/loss", "speed/data_wait"} <= rows[0].keys()


class Steps:
    """Steps of a run in name only, as the callback sees them."""

    def __init__(self, speed: Speed, every: int = 1) -> None:
        self.speed, self.rows = speed, []
        self.module: Any = SimpleNamespace(batch_ended=0.0, device=torch.device("cpu"), report=self.rows.append)
        self.module.reports = lambda step: (step + 1) % every == 0
        self.trainer: Any = SimpleNamespace(global_step=-1, precision="32-true")
        self.trainer.datamodule = SimpleNamespace(global_batch=1, skipped=0)
        speed.on_train_start(self.trainer, self.module)

    def begin(self, name: str) -> bool:
        """Whether the operations of this step, of a phase `name`, are counted."""
        self.trainer.global_step += 1
        self.module.schedule = SimpleNamespace(at=lambda step: SimpleNamespace(name=name, discriminator=False))
        self.speed.on_train_batch_start(self.trainer, self.module, None, 0)
        return _get_current_dispatch_mode() is not None

    def end(self) -> None:
        record = SimpleNamespace(step=self.trainer.global_step, norm=torch.ones(()))
        self.speed.on_train_batch_end(self.trainer, self.module, {"record": record}, None, 0)
        assert _get_current_dispatch_mode() is None


def test_the_second_step_of_each_kind_is_counted() -> None:
    """The first one compiles, which the counter would prevent."""
    steps, counted = Steps(Speed(1.0), every=2), []
    for name in "aaaabbba":
        counted.append(steps.begin(name))
        torch.ones(3, 5) @ torch.ones(5, 7 if name == "a" else 11)
        steps.end()
    assert counted == [False, True, False, False, False, True, False, False]
    assert steps.speed.flops == {("a", False): 2 * 3 * 5 * 7, ("b", False): 2 * 3 * 5 * 11}
    assert ["speed/utilisation" in row for row in steps.rows] == [True] * 4


@pytest.mark.parametrize("counting", [True, False])
def test_a_step_that_fails_ends_the_count(counting: bool) -> None:
    steps = Steps(Speed(1.0))
    for _ in range(int(counting)):
        steps.begin("a")
        steps.end()
    assert steps.begin("a") == counting
    steps.speed.on_exception(steps.trainer, steps.module, ValueError())
    assert _get_current_dispatch_mode() is None


@pytest.mark.parametrize(
    ("card", "precision", "tf32", "peak"),
    [
        ("NVIDIA H200", "bf16-mixed", True, 989e12),
        ("NVIDIA H200", "32-true", True, 494e12),
        ("NVIDIA H200", "32-true", False, 67e12),
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", True, 989e12),
        ("NVIDIA H100 PCIe", "32-true", True, "high"),
        ("NVIDIA H100 PCIe", "32-true", False, "highest"),
        ("another", "bf16-mixed", True, None),
    ],
)
def test_peaks_come_from_the_makers_then_from_lightning(
    card: str, precision: str, tf32: bool, peak: float | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    # Lightning's table goes by the setting that training has in a step
    table = {"another": lambda *_: None}.get(card, lambda *_: torch.get_float32_matmul_precision())
    monkeypatch.setattr(speed_module, "get_available_flops", table)
    speed = Speed()
    module: Any = SimpleNamespace(device=torch.device("cuda"), tf32=tf32)
    speed.on_train_start(cast(Any, SimpleNamespace(precision=precision)), module)
    assert speed.peak == peak
