"""A run that was stopped and started again is the same run, to the last bit (one process, CPU)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import GAN, tiny

from alitok.data.shapes import Shapes
from alitok.data.token_shards import write_token_cache
from alitok.models.seams import Part
from alitok.training.launch import run

STAGE1 = [
    *GAN,
    "--model.phases",
    "{continuous: {steps: 1}, main: {steps: 1}, gan: {steps: 4, lr: 1.e-3, adversarial: true}}",
    "--model.warmup_steps",
    "0",
    "--trainer.callbacks.checkpoint.every_n_train_steps",
    "1",
]
GENERATOR = ["--model.phases.main.steps", "6", "--trainer.callbacks.checkpoint.every_n_train_steps", "1"]


def tokens(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [(i % 10, torch.randint(32, (2, 20), generator=generator).numpy()) for i in range(40)]
    names = Shapes("train").class_names
    write_token_cache(folder / "tokens", rows, codebook_size=32, digest="d" * 64, class_names=names, recipe={})


@pytest.mark.parametrize(
    ("name", "stage", "options"), [("tokenizer-stage1", "stage1", STAGE1), ("generator", "generator", GENERATOR)]
)
@pytest.mark.parametrize("stop", [3, 4])
def test_resumed_equals_uninterrupted(
    name: str, stage: str, options: list[str], stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    if name == "generator":
        # The picture of samples needs a tokenizer, which is not what is tested here.
        options = [*options, "--trainer.callbacks.samples", "null"]
        for folder in (whole, parts):
            folder.mkdir()
            tokens(folder)
    run("fit", tiny(name, whole, *options))
    read: list[Part] = []
    monkeypatch.setattr(Part, "setup", lambda self, device: read.append(self))
    run("fit", tiny(name, parts, *options, "--trainer.max_steps", str(stop)))
    assert read
    read.clear()
    run("fit", tiny(name, parts, *options))
    assert not read  # parts read their files at the start of a new run only
    first, second = (load_file(folder / stage / "artifact" / "model.safetensors") for folder in (whole, parts))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    if name != "generator":
        a, b = (load_file(folder / stage / "artifact" / "discriminator.safetensors") for folder in (whole, parts))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_finished_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        run("fit", tiny("tokenizer-stage1", tmp_path, *STAGE1))
    assert "is finished (6 steps)" in capsys.readouterr().out
