"""Latents held to a frozen encoder: the formulas, which latents they read, and what they refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_semantic import Flat
from tiny import module_of, tiny
from torch import nn

from alitok.common.errors import BadInput
from alitok.ideas.alignment import VF, LatentREPA
from alitok.training.launch import run

TEACHER = "teacher: {class_path: test_semantic.Flat}, channels: 4, prefix: 4"


def loss(name: str) -> list[str]:
    return ["--model.losses.align", f"{{class_path: alitok.ideas.alignment.{name}, {TEACHER}}}"]


def attached(name: str, folder: Path) -> tuple[Any, Any]:
    module = module_of(tiny("tokenizer-stage1", folder, *loss(name)))
    term = module.terms["align"]
    term.setup("cpu")
    return module, term


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm()


@pytest.mark.parametrize("name", ["VF", "LatentREPA"])
def test_the_formula(name: str, tmp_path: Path) -> None:
    module, term = attached(name, tmp_path)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = module.tokenizer.eval()(images)
        features = term.teacher.features(images, 4)
        near, apart = [], []
        for image in range(2):
            ours = [unit(term.head(outputs["latents"][image, 4 + place])) for place in range(16)]  # 4 of the prefix
            theirs = [unit(features[image, place]) for place in range(16)]
            near += [a @ b for a, b in zip(ours, theirs, strict=True)]
            apart += [abs(ours[i] @ ours[j] - theirs[i] @ theirs[j]) for i in range(16) for j in range(16)]
        cosine, distance = torch.stack(near), torch.stack(apart)
        expected = -cosine.mean()
        if name == "VF":
            expected = (0.5 - cosine).clamp(min=0).mean() + (distance - 0.25).clamp(min=0).mean()
        torch.testing.assert_close(term({"image": images}, outputs), expected)


@pytest.mark.parametrize("name", ["VF", "LatentREPA"])
def test_a_step_moves_the_encoder_and_the_head_and_not_the_decoder(name: str, tmp_path: Path) -> None:
    module, term = attached(name, tmp_path)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    term({"image": images}, module.tokenizer.train()(images)).backward()
    assert module.tokenizer.encoder.to_code.weight.grad.any()
    assert all(parameter.grad.any() for name, parameter in term.head.named_parameters() if name.endswith("weight"))
    assert all(parameter.grad is None for parameter in module.tokenizer.decoder.parameters())


def test_it_trains_and_leaves_a_plain_artifact(tmp_path: Path) -> None:
    words = ["--trainer.max_steps", "3", "--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "3"]
    config = tiny("tokenizer-stage1", tmp_path, *loss("LatentREPA"), *words, "--trainer.callbacks.grid", "null")
    run("fit", config)
    kept = tmp_path / "stage1" / "artifact" / "model.safetensors"
    assert kept.is_file()
    assert b"align" not in kept.read_bytes()[:20_000]


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"VF: teacher must be a .*Teacher, not a Linear"):
        VF(nn.Linear(1, 1), 4, 4)  # type: ignore[arg-type]
    module, _ = attached("VF", tmp_path)
    for prefix, left in ((0, 20), (3, 17), (20, 0)):
        with pytest.raises(BadInput, match=f"a square grid of latents, not {left}"):
            VF(Flat(), 4, prefix).attach(module.tokenizer)
    with pytest.raises(BadInput, match="a square grid of latents, not"):
        VF(Flat(), 4, 0).attach(nn.Linear(1, 1))
    images = torch.rand(1, 3, 32, 32)
    term = LatentREPA(Flat(), 5, 4)
    term.attach(module.tokenizer)
    with pytest.raises(BadInput, match="the latents have 4 channels, not 5"):
        term({"image": images}, module.tokenizer(images))
    ids = torch.zeros(1, 20, dtype=torch.int64)
    with pytest.raises(BadInput, match="reads 'latents' of an encoder and its quantizer: leave it out"):
        term({"image": images}, module.tokenizer(images, ids=ids))
