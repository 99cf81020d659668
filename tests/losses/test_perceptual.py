"""Perceptual terms against the release's numbers; weight files that are missing, foreign or damaged."""

import gc
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alitok.common.errors import BadInput
from alitok.losses import perceptual
from alitok.losses.perceptual import LPIPS, ConvNeXtLogits
from alitok.networks import frozen

GOLDEN = Path(__file__).parents[1] / "golden"
NUMBERS = np.load(GOLDEN / "perceptual_release.npz")
fill, images = (runpy.run_path(str(GOLDEN / "fill.py"))[name] for name in ("fill", "images"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two networks' files, filled as for the golden numbers; VGG16's with a classifier, too."""
    folder = tmp_path_factory.mktemp("weights")
    for prefix, network in (("vgg16.", frozen.VGG16), ("convnext_small.", frozen.CONVNEXT_SMALL)):
        with torch.device("meta"):
            shapes = {prefix + key: value.shape for key, value in network.build().state_dict().items()}
        state = {key.removeprefix(prefix): value for key, value in fill(shapes).items()}
        if prefix == "vgg16.":
            state["classifier.6.bias"] = torch.zeros(1000)
        torch.save(state, folder / network.file)
    return folder


def build(name: str, given: str) -> LPIPS | ConvNeXtLogits:
    return LPIPS(vgg_weights=given) if name == "lpips" else ConvNeXtLogits(weights=given)


@pytest.mark.parametrize("name", ["lpips", "convnext"])
def test_release_values_and_gradients(name: str, weights: Path) -> None:
    term = build(name, str(weights))
    term.check()
    term.setup("cpu")
    target, moved = images(2), images(2, seed=8).requires_grad_()
    distances = term.distance(moved, target)
    torch.testing.assert_close(distances, torch.from_numpy(NUMBERS[name]), rtol=1e-5, atol=0)
    distances.mean().backward()
    gradient = moved.grad
    assert gradient.double().norm().item() == pytest.approx(float(NUMBERS[f"{name}_grad_norm"]), rel=1e-3)
    sample = torch.from_numpy(NUMBERS[f"{name}_grad"])
    difference = (gradient[:, :, ::37, ::41] - sample).norm() / sample.norm()
    assert difference < 1e-3
    assert term({"image": target}, {"image": moved}) == distances.mean()


@pytest.mark.parametrize("name", ["lpips", "convnext"])
def test_random_networks_by_name(name: str) -> None:
    term, same, other = build(name, "random:0"), build(name, "random:0"), build(name, "random:1")
    target = torch.rand(2, 3, 32, 32)
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="call setup"):
        term.distance(image, target)
    for item in (term, same, other):
        item.check()
        item.setup("cpu")
    assert term._network is same._network
    assert term._network is not other._network
    assert not term._network.training
    assert not any(parameter.requires_grad for parameter in term._network.parameters())
    holder = nn.Module()
    holder.term = term
    assert not holder.state_dict()
    assert not list(holder.modules())[1:]

    distances = term.distance(image, target)
    assert distances.shape == (2,)
    assert (distances > 0).all()
    assert term.distance(image, image.detach()).abs().max() == 0
    assert not torch.allclose(distances, other.distance(image, target))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = term({"image": target}, {"image": image})
        each = term.distance(image, target)
    assert under.dtype == torch.float32
    assert torch.equal(each, distances)
    assert under == distances.mean()
    under.backward()
    assert torch.isfinite(image.grad).all()
    assert image.grad.abs().sum() > 0


def test_networks_are_let_go() -> None:
    term = build("lpips", "random:7")
    term.setup("cpu")
    assert ("VGG16", "random:7", "cpu") in frozen._loaded
    del term
    gc.collect()
    assert ("VGG16", "random:7", "cpu") not in frozen._loaded


def test_lpips_gradient_where_features_are_zero() -> None:
    term = build("lpips", "random:0")
    term.MEAN = (0.0, 0.0, 0.0)
    term.setup("cpu")  # mid-gray is then exactly 0, and so is every feature (the stand-in's biases are 0)
    image = torch.full((1, 3, 32, 32), 0.5, requires_grad=True)
    assert all(features.abs().max() == 0 for features in term.features(image.detach()))
    term.distance(image, torch.rand(1, 3, 32, 32)).sum().backward()
    assert torch.isfinite(image.grad).all()


@pytest.mark.parametrize(
    ("name", "file"), [("lpips", "vgg16-397923af.pth"), ("convnext", "convnext_small-0c510722.pth")]
)
def test_missing_file(name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    term = build(name, None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for look in (term.check, lambda: term.setup("cpu")):
        with pytest.raises(BadInput) as caught:
            look()
        assert f"Missing weight file {file}" in str(caught.value)
        assert str(tmp_path / "hub" / "checkpoints" / file) in str(caught.value)
        assert f"https://download.pytorch.org/models/{file}" in str(caught.value)
        assert "TORCH_HOME" in str(caught.value)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / file).touch()
    term.check()


def test_missing_linear_layers(tmp_path: Path) -> None:
    term = LPIPS(vgg_weights="random:0", linear_weights=str(tmp_path / "gone.pth"))
    with pytest.raises(BadInput, match=r"Missing weight file vgg\.pth.*gone\.pth"):
        term.check()


def test_files_of_other_models(weights: Path, tmp_path: Path) -> None:
    vgg, convnext = weights / frozen.VGG16.file, weights / frozen.CONVNEXT_SMALL.file
    with pytest.raises(
        BadInput, match=r"does not hold the weights of VGG16: features\.0\.0\.bias is \(96,\), should be abs"
    ):
        LPIPS(vgg_weights=str(convnext)).setup("cpu")
    with pytest.raises(BadInput, match="does not hold the weights of ConvNeXt-S"):
        ConvNeXtLogits(weights=str(vgg)).setup("cpu")
    with pytest.raises(BadInput, match="does not hold the weights of LPIPS's linear layers"):
        LPIPS(vgg_weights="random:0", linear_weights=str(vgg)).setup("cpu")
    reshaped = torch.load(vgg, weights_only=True)
    reshaped["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    torch.save(reshaped, tmp_path / "gray.pth")
    with pytest.raises(BadInput, match=r"features\.0\.weight is \(64, 1, 3, 3\), should be \(64, 3, 3, 3\)"):
        LPIPS(vgg_weights=str(tmp_path / "gray.pth")).setup("cpu")


@pytest.mark.parametrize("content", [b"", b"not found", b"PK\x03\x04 cut short"])
def test_damaged_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"weights\.pth is not a readable weight file of ConvNeXt-S"):
        ConvNeXtLogits(weights=str(path)).setup("cpu")


def test_wrong_seed() -> None:
    with pytest.raises(BadInput, match="'random:x' of VGG16"):
        LPIPS(vgg_weights="random:x").check()


def test_import_and_construction_load_no_vision_library() -> None:
    program = (
        "import sys; from alitok.losses.perceptual import LPIPS, ConvNeXtLogits; LPIPS('random:0').check(); "
        "ConvNeXtLogits('random:0').check(); print('torchvision' in sys.modules, 'torchmetrics' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


class Copies(TorchDispatchMode):
    """Operations that take or give a tensor on the CPU, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.seen.append(str(func))
        return result


@pytest.mark.parametrize("kind", ["convnext", "lpips"])
def test_a_step_copies_nothing_to_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake CUDA tensors: each copy of a constant would wait for all that is queued on the GPU."""
    with FakeTensorMode(), frozen.without_weights():
        term = build(kind, "random:0")
        if kind == "convnext":  # whose own weights cannot be drawn without their numbers
            network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 4, device="cuda"))
            monkeypatch.setattr(perceptual, "load", lambda *_: network)
        term.setup("cuda")
        images = torch.zeros(2, 3, 64, 64, device="cuda")
        with Copies() as copies:
            assert term.distance(images, images).device.type == "cuda"
            assert copies.seen == []
            images.new_tensor([0.5])  # which is seen
            assert copies.seen
