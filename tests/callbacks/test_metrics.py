"""Metrics during validation: a chosen number of images, the averaged weights, the same numbers on every process."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import numpy as np
import pytest
import tiny
import torch

from alitok.artifacts.folder import save_artifact
from alitok.callbacks.average import WeightAverage
from alitok.callbacks.metrics import Accuracy, Generation, Reconstruction
from alitok.common.build import build, import_class
from alitok.common.errors import BadInput
from alitok.networks.classifier import Classifier

CLASSIFIER, TOKENIZER = "classifier", "tokenizer"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, a tokenizer artifact, reference statistics and a token cache, all tiny."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    Classifier(10, width=2).save(folder / CLASSIFIER)
    block = tiny.tiny("tokenizer-stage1", folder)["model"]["init_args"]["tokenizer"]
    card = save_artifact(folder / TOKENIZER, block, build(block), {"kind": "tokenizer"})
    np.savez(folder / "reference.npz", mu=np.zeros(8), sigma=np.eye(8))
    tiny.token_cache(folder, digest=card["digest"])
    return folder


def validate(config: dict[str, Any], *callbacks: L.Callback, devices: int = 1) -> dict[str, float]:
    """The numbers that the last of the callbacks logs."""
    module = tiny.module_of(config)
    data = import_class(config["data"]["class_path"])(**config["data"]["init_args"])
    several: dict[str, Any] = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **several,
    )
    trainer.validate(module, datamodule=data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def generation(parts: Path, **changes: Any) -> Generation:
    words = {"tokenizer": TOKENIZER, "extractor": CLASSIFIER, "reference": "reference.npz"}
    return Generation(**{key: str(parts / name) for key, name in words.items()}, **{"count": 13, "batch": 5, **changes})


def generator_config(parts: Path) -> dict[str, Any]:
    return tiny.tiny(
        "generator", parts, "--define.cache", str(parts / "tokens"), "--define.tokenizer", str(parts / TOKENIZER)
    )


def test_reconstruction_of_a_chosen_number_of_images(parts: Path) -> None:
    config = tiny.tiny("tokenizer-stage1", parts)
    whole = validate(config, Reconstruction(str(parts / CLASSIFIER)))
    assert validate(config, Reconstruction(str(parts / CLASSIFIER), count=16)) == whole  # the split holds 16
    callback = Reconstruction(str(parts / CLASSIFIER), count=5)
    few = validate(config, callback)
    assert callback.running["reconstruction"].reconstructed.count == 5
    assert int(callback.running["codebook"].counts.sum()) == 5 * 20
    assert few["val/psnr"] != whole["val/psnr"]
    assert {"val/psnr", "val/ssim", "val/rfid", "val/codebook_usage"} <= few.keys()


class Average(WeightAverage):
    """Its average is a model with other weights."""

    def other(self, module: Any) -> torch.nn.Module:
        torch.manual_seed(1)
        model: torch.nn.Module = build(module.model.block)
        return model

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.trained = {name: tensor.clone() for name, tensor in pl_module.model.state_dict().items()}
        self._begin(self.other(pl_module))
        super().on_validation_start(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_validation_end(trainer, pl_module)
        for name, tensor in pl_module.model.state_dict().items():
            assert torch.equal(tensor, self.trained[name])  # training goes on with its own weights


class Same(Average):
    def other(self, module: Any) -> torch.nn.Module:
        return cast(torch.nn.Module, module.model)


def test_an_average_of_the_weights_is_what_is_measured(parts: Path) -> None:
    config = tiny.tiny("tokenizer-stage1", parts)
    own, averaged = validate(config, Reconstruction()), validate(config, Average(), Reconstruction())
    assert averaged["val/psnr"] != own["val/psnr"]
    assert averaged["val/mse"] != own["val/mse"]  # losses are the average's too
    assert validate(config, Same(), Reconstruction()) == own


@pytest.mark.parametrize("average", [False, True])
def test_accuracy_is_left_out_with_a_sentence_if_the_head_has_no_logits(
    parts: Path, average: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks = [Average(), Accuracy()] if average else [Accuracy()]
    config = generator_config(parts)
    assert {"val/loss", "val/token_accuracy", "val/token_nats"} <= validate(config, *callbacks).keys()
    assert "left out" not in capsys.readouterr().out
    config["model"]["init_args"]["generator"]["class_path"] = "alitok.ideas.masked_bits.MaskedBitGenerator"
    config["model"]["init_args"]["generator"]["init_args"]["head"] = {"rounds": [5], "width": 16, "depth": 1}
    assert validate(config, *callbacks).keys() == {"val/loss"}
    assert capsys.readouterr().out.count("MaskedBitHead has no logits of tokens: token accuracy") == 1


def test_what_is_missing_shows_at_the_start(parts: Path) -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    module: Any = None
    np.savez(parts / "images.npz", arr_0=np.zeros((4, 32, 32, 3), np.uint8))
    np.savez(parts / "wide.npz", mu=np.zeros(9), sigma=np.eye(9))
    trainer.datamodule = SimpleNamespace(token_cache=SimpleNamespace(folder="tokens", digest="d" * 64))
    for changes, words in (
        ({"tokenizer": "none"}, "no such folder"),
        ({}, "tokens was made by tokenizer dddddddddddd"),
        ({"extractor": "none.pt"}, "Missing weight file"),
        ({"reference": "none.npz"}, "does not exist"),
        ({"reference": "images.npz"}, "holds no mu and sigma"),
        ({"reference": "wide.npz"}, "of 9 features, but classifier gives 8"),
    ):
        callback = generation(parts)
        for key, name in changes.items():
            setattr(callback, key, str(parts / name))
        with pytest.raises(BadInput, match=words):
            callback.setup(trainer, module, "fit")
    with pytest.raises(BadInput, match="at least 2"):
        generation(parts, count=1)
    with pytest.raises(BadInput, match="at least 2"):
        Reconstruction(count=1)


class Note(L.Callback):
    """Writes down what each process knows."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        known = {name: float(value) for name, value in trainer.callback_metrics.items()}
        Path(self.folder, f"{trainer.global_rank}.json").write_text(json.dumps(known))


def of_one_process(rank: int, folder: str, port: int) -> None:
    import os

    torch.set_num_threads(1)
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    parts = Path(folder)
    for name, config, callback in (
        ("generator", generator_config(parts), generation(parts)),
        ("tokenizer", tiny.tiny("tokenizer-stage1", parts), Reconstruction(str(parts / CLASSIFIER), count=7)),
    ):
        notes = parts / name
        notes.mkdir(exist_ok=True)
        validate(config, callback, Note(str(notes)), devices=2)


def test_two_processes_know_the_numbers_of_one(parts: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(of_one_process, args=(str(parts), port), nprocs=2)
    alone = {
        "generator": validate(generator_config(parts), generation(parts)),
        "tokenizer": validate(tiny.tiny("tokenizer-stage1", parts), Reconstruction(str(parts / CLASSIFIER), count=7)),
    }
    assert alone["generator"]["val/fid"] > 0
    assert alone["generator"]["val/inception_score"] >= 1
    reconstruction = ("psnr", "ssim", "rfid", "codebook_usage", "codebook_perplexity")
    expected = {"generator": ("fid", "inception_score"), "tokenizer": reconstruction}
    for name, numbers in alone.items():
        first, second = (json.loads((parts / name / f"{rank}.json").read_text()) for rank in range(2))
        assert first == second
        for key in (f"val/{word}" for word in expected[name]):
            assert first[key] == pytest.approx(numbers[key], rel=1e-4), key
