"""Reduced precision is for the forward pass."""

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from alitok.common.build import import_class
from alitok.common.random import reseed
from alitok.training import step
from alitok.training.bare import bare_trainer


class Watch(torch.autograd.Function):
    """The identity; notes whether autocast is on in the backward pass."""

    seen: list[bool]

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Watch.seen.append(torch.is_autocast_enabled("cpu"))
        return gradient


@pytest.mark.parametrize("name", ["generator", "tokenizer-stage1"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_the_backward_pass_runs_outside_autocast(
    name: str, precision: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what runs in float32 on purpose, as the perceptual losses do, would get gradients in bfloat16."""
    cache = tiny.token_cache(tmp_path)
    words = ["--data.cache", str(cache)] if name == "generator" else ["--data.micro_batch", "3", *tiny.GAN]
    if name != "generator":
        words += [
            "--model.phases",
            "{continuous: null, main: {steps: 1, lr: 1.e-3}, gan: {steps: 2, lr: 1.e-3, adversarial: true}}",
        ]
    config = tiny.tiny(name, tmp_path, *words)
    module = tiny.module_of(config)
    data = import_class(config["data"]["class_path"])(**config["data"]["init_args"])
    forward: list[bool] = []
    original = type(module).manual_backward

    def watched(self: Any, loss: Tensor) -> None:
        original(self, Watch.apply(loss))

    def reseeded(*keys: Any) -> None:  # just before a micro-batch's forward pass
        forward.append(torch.is_autocast_enabled("cpu"))
        reseed(*keys)

    monkeypatch.setattr(type(module), "manual_backward", watched)
    monkeypatch.setattr(step, "reseed", reseeded)
    Watch.seen = []
    trainer = bare_trainer(3, precision=precision)
    trainer.fit(module, datamodule=data)
    assert forward == [precision == "bf16-mixed"] * (3 if name == "generator" else 9)
    assert Watch.seen == [False] * len(forward)
