"""Pictures, histograms, configuration and card in the loggers, read back from TensorBoard's files."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import DEMO, SMALL

from alitok.callbacks import loggers
from alitok.cli import run

STEPS = ["--model.phases.continuous.steps", "2", "--model.phases.main.steps", "2", "--trainer.val_check_interval", "2"]


def test_tensorboard_gets_what_people_look_at(tmp_path: Path) -> None:
    words = ["fit", "-c", str(DEMO / "tokenizer-stage1.yaml"), "--define.run", str(tmp_path), *SMALL, *STEPS]
    run(words)
    files = list(tmp_path.rglob("events.out.tfevents.*"))
    assert files
    events = EventAccumulator(str(files[0].parent), size_guidance={"images": 0, "tensors": 0, "histograms": 0})
    events.Reload()
    pictures = events.Images("reconstruction")
    assert [picture.step for picture in pictures] == [2, 4]
    stored = sorted((tmp_path / "stage1" / "pictures").glob("reconstruction-*.png"))
    with Image.open(stored[0]) as image:
        assert (pictures[0].width, pictures[0].height) == image.size
    histogram = events.Histograms("codes")[-1].histogram_value
    assert histogram.num > 0
    text = events.Tensors("card/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"psnr"' in text
    assert "reconstruction/caption/text_summary" in events.Tags()["tensors"]
    assert (files[0].parent / "hparams.yaml").read_text().count("TokenizerTraining") == 1


def test_weights_and_biases_gets_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in for its logger: the package is an extra."""
    sent: list[Any] = []

    class Logger(WandbLogger):
        def __init__(self) -> None:
            pass

        def log_image(self, key: str, images: list[Any], step: int | None = None, **more: Any) -> None:
            sent.append((key, images, step, more["caption"]))

        def log_hyperparams(self, params: Any) -> None:
            sent.append(params)

        @property
        def experiment(self) -> Any:
            return SimpleNamespace(log=sent.append, summary={})

    histogram = SimpleNamespace(Histogram=lambda values: ("histogram", len(values)))
    monkeypatch.setitem(sys.modules, "wandb", histogram)
    trainer: Any = SimpleNamespace(loggers=[Logger()], global_step=7)
    loggers.show_picture(trainer, "samples", tmp_path / "a.png", "cats")
    loggers.show_counts(trainer, "codes", torch.arange(9))
    loggers.show_configuration(trainer, {"a": 1})
    loggers.show_text(trainer, "card", "{}")
    assert sent == [
        ("samples", [str(tmp_path / "a.png")], 7, ["cats"]),
        {"codes": ("histogram", 9), "trainer/global_step": 7},
        {"a": 1},
    ]


def test_names_that_are_no_utf8_are_escaped(tmp_path: Path) -> None:
    logger = loggers.TensorBoard(str(tmp_path))
    trainer: Any = SimpleNamespace(loggers=[logger], global_step=1)
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    loggers.show_picture(trainer, "samples", tmp_path / "a.png", name)
    loggers.show_text(trainer, "card", name)
    loggers.show_configuration(trainer, {"data": {"names": [name, 1]}})
    logger.save()
    assert "caf\\udce9" in (Path(logger.log_dir) / "hparams.yaml").read_text()


def test_loggers_that_take_no_pictures_get_none(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(loggers=[loggers.CSV(tmp_path)], global_step=1)
    loggers.show_picture(trainer, "a", tmp_path / "none.png", "")
    loggers.show_counts(trainer, "a", torch.ones(2))
    loggers.show_text(trainer, "a", "b")
    assert not np.any([path.suffix == ".png" for path in tmp_path.rglob("*")])
