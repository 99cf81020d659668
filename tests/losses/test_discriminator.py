"""Discriminators against the release's numbers, and what both promise."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from alitok.common.errors import BadInput
from alitok.losses.adversarial import BlurDiscriminator, BlurDownsample, PatchGAN

GOLDEN = Path(__file__).parents[1] / "golden"
KEYS = json.loads((GOLDEN / "official_discriminator_keys.json").read_text())


def small_blur() -> BlurDiscriminator:
    torch.manual_seed(0)
    return BlurDiscriminator(width=8, stages=(8, 16, 16), groups=8, map_size=8)


def test_release_keys_and_shapes() -> None:
    with torch.device("meta"):
        model = BlurDiscriminator()
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == KEYS


def test_release_logits() -> None:
    golden = runpy.run_path(str(GOLDEN / "fill.py"))
    model = BlurDiscriminator()
    state = golden["fill"]({f"discriminator.{key}": shape for key, shape in KEYS.items() if "kernel" not in key})
    state = {key.removeprefix("discriminator."): value for key, value in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("kernel") for key in missing)
    with torch.no_grad():
        logits = model(golden["images"](2))
    expected = torch.from_numpy(np.load(GOLDEN / "discriminator_release.npz")["logits"])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_blur_kernel_by_hand() -> None:
    blur = BlurDownsample()
    ramp = torch.arange(8.0).expand(1, 2, 8, 8).clone()
    blurred = blur(ramp)
    assert blurred.shape == (1, 2, 4, 4)
    # inside, the kernel averages and so keeps a ramp, read between its two middle pixels
    torch.testing.assert_close(blurred[0, :, 1:3, 1:3], torch.tensor([2.5, 4.5]).expand(2, 2, 2))
    # at the left edge one zero pixel stands outside: (1*0 + 3*0 + 3*1 + 1*2) / 8
    torch.testing.assert_close(blurred[0, 0, 1, 0], torch.tensor(5 / 8))
    # a channel takes nothing from another
    ramp[:, 1] = 0
    assert blur(ramp)[:, 1].abs().sum() == 0


@pytest.mark.parametrize("size", [32, 64])
def test_small_images(size: int) -> None:
    images = torch.rand(2, 3, size, size)
    assert small_blur()(images).shape == (2, 1, 8, 8)
    assert PatchGAN(widths=(8, 16, 16, 16))(images).shape == (2, 1, size // 8 - 2, size // 8 - 2)


@pytest.mark.parametrize("build", [small_blur, lambda: PatchGAN(widths=(8, 16, 16, 16))])
def test_gradients_state_and_precision(build) -> None:
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    logits = model(images)
    logits.square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(model.eval()(images), logits, atol=0, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = model(images.to(torch.bfloat16).float())
    assert under.dtype == torch.float32
    torch.testing.assert_close(under, model(images.to(torch.bfloat16)), atol=0, rtol=0)


def test_patchgan_layout() -> None:
    torch.manual_seed(0)
    model = PatchGAN()
    convolutions = [layer for layer in model.layers if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 1]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 1, 1]
    assert all(layer.kernel_size == (4, 4) for layer in convolutions)
    assert [layer.bias is not None for layer in convolutions] == [True, False, False, False, True]
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model.layers) == 3
    assert all(layer.weight.std().item() == pytest.approx(0.02, rel=0.1) for layer in convolutions)
    weights = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights + 64 + 1 + 2 * (128 + 256 + 512)
    with torch.no_grad():
        assert model(torch.rand(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_bad_sizes() -> None:
    with pytest.raises(BadInput, match=r"\[12\] are not multiples of groups \(8\)"):
        BlurDiscriminator(width=8, stages=(8, 12), groups=8)
    with pytest.raises(BadInput, match="at least 24 pixels a side but got 16 x 16"):
        PatchGAN(widths=(4, 4, 4, 4))(torch.rand(1, 3, 16, 16))
    assert PatchGAN(widths=(4, 4, 4, 4))(torch.rand(1, 3, 24, 24)).shape == (1, 1, 1, 1)
