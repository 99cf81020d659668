from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.files import sha256
from alitok.evaluation import extractors
from alitok.evaluation.extractors import INCEPTION_CONVOLUTIONS, INCEPTION_FILE, InceptionExtractor

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


class Tiny(nn.Module):
    """Answers the calls of the published TorchScript file."""

    def __init__(self, layers: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.layers = layers
        self.project = nn.Linear(3, width)
        self.output = nn.Linear(width, classes)

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        features = self.project((img.to(torch.float32).mean(dim=[2, 3]) - 128) / 128)
        if return_features:
            return features
        logits = features @ self.output.weight.t()
        if not no_output_bias:
            logits = logits + self.output.bias
        return torch.softmax(logits, dim=1)


class Unit(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(shape))
        self.register_buffer("bias", torch.zeros(shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Mixed(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return x


def genuine_layers() -> nn.Sequential:
    layers = nn.Sequential()
    for name in ("conv", "conv_1", "conv_2", "conv_3", "conv_4"):
        layers.add_module(name, Unit(INCEPTION_CONVOLUTIONS[name]))
    for name in ("pool0", "pool1", "mixed", *(f"mixed_{i}" for i in range(1, 6))):
        layers.add_module(name, nn.Identity())
    layers.add_module("mixed_6", Mixed(Unit(INCEPTION_CONVOLUTIONS["mixed_6.conv"])))
    return layers


def write(path: Path, layers: nn.Module, width: int = 8, classes: int = 5) -> Path:
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Tiny(layers, width, classes)), str(path))
    return path


def test_features_and_probabilities_without_bias(tmp_path: Path) -> None:
    path = write(tmp_path / INCEPTION_FILE, nn.Sequential(nn.Identity()))
    extractor = InceptionExtractor(tmp_path)
    assert extractor.stand_in
    assert extractor.num_features == 8
    assert extractor.digest == sha256(path)

    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    features = extractor(images)
    network = torch.jit.load(str(path))
    torch.testing.assert_close(features.pooled, network(images, return_features=True))
    torch.testing.assert_close(features.probabilities, (features.pooled @ network.output.weight.T).softmax(dim=1))
    assert not features.pooled.requires_grad


def test_genuine_names_and_shapes_are_told_from_a_stand_in(tmp_path: Path) -> None:
    genuine = write(tmp_path / "genuine.pt", genuine_layers(), 2048, 1008)
    assert not InceptionExtractor(genuine).stand_in
    narrow = write(tmp_path / "narrow.pt", genuine_layers(), 64, 1008)
    assert InceptionExtractor(narrow).stand_in
    changed = genuine_layers()
    changed.conv_3 = Unit((80, 64, 3, 3))
    assert InceptionExtractor(write(tmp_path / "changed.pt", changed, 2048, 1008)).stand_in
    renamed = nn.Sequential(nn.Identity())
    assert InceptionExtractor(write(tmp_path / "renamed.pt", renamed, 2048, 1008)).stand_in


def test_the_file_is_looked_for_where_clean_fid_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "clean_fid_folder", lambda: tmp_path)
    with pytest.raises(BadInput, match=r"inception-2015-12-05\.pt.*nvlabs"):
        InceptionExtractor()
    write(tmp_path / INCEPTION_FILE, nn.Identity())
    assert InceptionExtractor().num_features == 8


def test_other_interfaces_are_refused(tmp_path: Path) -> None:
    class NoFlags(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class NoProbabilities(nn.Module):
        def forward(self, x: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
            return x.mean(dim=[2, 3]) + 3

    class NoRows(nn.Module):
        def forward(self, x: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
            return x

    for module, message in (
        (NoFlags(), "does not answer"),
        (NoProbabilities(), "no class prob"),
        (NoRows(), "returns no"),
    ):
        path = tmp_path / "other.pt"
        torch.jit.save(torch.jit.script(module), str(path))
        with pytest.raises(BadInput, match=message):
            InceptionExtractor(path)
    path.write_bytes(b"not TorchScript")
    with pytest.raises(BadInput, match="not a TorchScript"):
        InceptionExtractor(path)


def test_other_images_are_refused(tmp_path: Path) -> None:
    extractor = InceptionExtractor(write(tmp_path / INCEPTION_FILE, nn.Identity()))
    for images in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(BadInput, match="uint8 images"):
            extractor(images)
