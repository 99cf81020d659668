"""Images per second, waiting for data, utilisation."""

import csv
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import GAN, tiny

from alitok.callbacks.curves import read_curves
from alitok.callbacks.speed import Speed
from alitok.commands.lightning import run
from alitok.data.batches import ImageBatches

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
