"""The generator of masked bits through training, strategies and the whole line."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import module_of, tiny, token_cache, train

from alitok.artifacts.folder import load_artifact, save_artifact
from alitok.data.encoding import tokenize
from alitok.data.sources import open_source
from alitok.reports.curves import read_curves
from alitok.sampling.generate import generate
from alitok.studies.processes import two_processes
from alitok.training.launch import run

BLOCK = (
    "{class_path: alitok.ideas.masked_bits.MaskedBitGenerator, init_args: {head: {rounds: [1, 2, 2], width: 48,"
    " depth: 2}}}"
)
KIND = ["--model.generator", BLOCK, "--model.generator.dropout", "0.0", "--model.warmup_steps", "5"]


def test_it_learns_and_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    token_cache(tmp_path)
    few = [*KIND, "--model.class_dropout", "0.0"]
    whole = train(tiny("generator", tmp_path, *few), 4).generator.state_dict()
    parts = train(tiny("generator", tmp_path, *few, "--data.micro_batch", "3"), 4).generator.state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], atol=5e-5, rtol=1e-3)
    module = train(tiny("generator", tmp_path, *KIND), 60)
    batch = next(iter(module.trainer.datamodule.val_dataloader()))
    seen = next(iter(module.trainer.datamodule.train_dataloader()))
    with torch.no_grad():
        model = module.generator.eval()
        loss = model.losses(seen["tokens"], seen["label"])["nats"].mean()
    assert loss < 0.95 * math.log(2), (loss, batch["tokens"].shape)


STRATEGIES = {"single": [], "ddp": ["--trainer.strategy", "ddp"], "fsdp": []}
STRATEGIES["fsdp"] = ["--trainer.strategy.class_path", "alitok.training.parallel.FSDP2"]


def fit(folder: Path, strategy: str, devices: int) -> None:
    options = ["--trainer.accelerator", "cpu", "--trainer.devices", str(devices), "--trainer.limit_val_batches", "0"]
    options += ["--trainer.callbacks.samples", "null", "--trainer.log_every_n_steps", "1", "--data.micro_batch", "2"]
    options += ["--trainer.logger.tensorboard", "null", "--define.cache", str(folder / "tokens")]
    options += ["--model.phases", "{main: {steps: 4, lr: 1.e-3}}", "--trainer.callbacks.progress", "null"]
    options += ["--trainer.enable_progress_bar", "false", *STRATEGIES[strategy]]
    run("fit", tiny("generator", folder / strategy, *KIND, *options))


def work(rank: int, folder: Path) -> None:
    fit(folder, "ddp", 2)
    fit(folder, "fsdp", 2)


@pytest.mark.slow
def test_every_strategy_has_the_losses_of_one_process(tmp_path: Path) -> None:
    token_cache(tmp_path)
    fit(tmp_path, "single", 1)
    two_processes(work, tmp_path)
    losses = {name: dict(read_curves(tmp_path / name / "generator")["train/loss"]) for name in STRATEGIES}
    assert len(losses["single"]) == 4
    for name in ("ddp", "fsdp"):
        assert losses[name] == pytest.approx(losses["single"], rel=1e-4)
    ids = [generate(load_artifact(tmp_path / name / "generator" / "artifact"), torch.arange(3), 0.0) for name in losses]
    assert ids[0].shape == ids[2].shape == (3, 20)


def test_from_pictures_to_bits_and_back(tmp_path: Path) -> None:
    """Binary tokenizer, token cache, masked-bit generator, samples, pictures."""
    block = "{class_path: alitok.ideas.binary.BinaryQuantizer, init_args: {code_dim: 5}}"
    options = ["--model.tokenizer.quantizer", block, "--define.codebook_size", "32", "--define.code_dim", "5"]
    config = tiny("tokenizer-stage1", tmp_path, *options)
    save_artifact(
        tmp_path / "tokenizer",
        config["model"]["init_args"]["tokenizer"],
        module_of(config).tokenizer,
        {"kind": "tokenizer"},
    )
    tokenizer: Any = load_artifact(tmp_path / "tokenizer")
    tokenize(tokenizer, open_source("shapes", "train", size=32, count=40), tmp_path / "tokens", crops="center")
    module = train(tiny("generator", tmp_path, *KIND), 3)
    pictures = tokenizer.decode(generate(module.generator.eval(), torch.arange(4), 2.0))
    assert pictures.shape == (4, 3, 32, 32)
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
