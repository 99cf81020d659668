"""The Gram loss: its formula, what it does not see, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.ideas.gram import ClassifierGram, Gram, gram
from alitok.models.decoder import Decoder
from alitok.models.encoder import Encoder
from alitok.models.quantizer import ClusteredQuantizer
from alitok.models.tokenizer import Tokenizer
from alitok.networks.classifier import Classifier
from alitok.networks.frozen import VGG16, load

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return load(VGG16, "random:3", "cpu")  # kept, so that the terms of this file share it


def term(**arguments: Any) -> Gram:
    built = Gram("random:3", **arguments)
    built.check()
    built.setup("cpu")
    return built


def pair(size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, size, size, generator=generator), torch.rand(2, 3, size, size, generator=generator)


def plain(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """As BAR writes it: every one of the 31 entries of VGG16's `features`, a convolution's overwritten by its ReLU."""
    total = torch.zeros(len(images))
    for row in range(len(images)):
        maps = []
        for picture in (images[row], targets[row]):
            x, seen = torch.stack([(picture[c] - MEAN[c]) / STD[c] for c in range(3)])[None], []
            for layer in network.features:
                x = layer(x)
                seen.append(x)
            maps.append([*seen, F.max_pool2d(x, 2)])
        assert len(maps[0]) == 31
        for ours, theirs in zip(*maps, strict=True):
            _, channels, height, width = ours.shape
            one, two = (torch.einsum("bchw,bdhw->cd", m, m) / (channels * height * width) for m in (ours, theirs))
            total[row] += ((one - two) ** 2).sum() / channels**2
    return total


def test_the_formula(network: nn.Module) -> None:
    images, targets = pair()
    with torch.no_grad():
        torch.testing.assert_close(term().distance(images, targets), plain(network, images, targets))


def test_equal_images_cost_nothing_and_others_move(network: nn.Module) -> None:
    images, targets = pair()
    assert not term().distance(targets, targets).any()
    images.requires_grad_()
    value = term()({"image": targets}, {"image": images})
    value.backward()
    assert value > 0
    assert images.grad.abs().sum() > 0
    blurred = F.avg_pool2d(targets, 3, 1, 1)
    assert (term().distance(blurred, targets) > 0).all()


def test_a_gram_matrix_does_not_see_places() -> None:
    maps = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    shuffled = maps.flatten(2)[..., torch.randperm(24)].view_as(maps)
    torch.testing.assert_close(gram(maps), gram(shuffled))
    torch.testing.assert_close(gram(2 * maps), 4 * gram(maps))
    assert gram(maps).shape == (2, 5, 5)


def test_larger_images_are_shrunk_and_smaller_ones_are_not(network: nn.Module) -> None:
    images, targets = pair(48)
    small = [F.interpolate(x, size=(32, 32), mode="bilinear") for x in (images, targets)]
    assert torch.equal(term(at_most=32).distance(images, targets), term(at_most=32).distance(*small))
    assert not torch.equal(term(at_most=48).distance(images, targets), term(at_most=32).distance(*small))
    assert torch.equal(term(at_most=224).distance(images, targets), term(at_most=48).distance(images, targets))


def test_what_it_refuses() -> None:
    with pytest.raises(BadInput, match="at_most must be 32 or more, not 31"):
        Gram(at_most=31)
    encoder, decoder = Encoder(16, 8, 4, 4, 16, 1, 1), Decoder(16, 8, 0, 4, 16, 1, 1, causal=False)
    model = Tokenizer(encoder, ClusteredQuantizer(8, 4), decoder)
    with pytest.raises(BadInput, match="must have 32 pixels or more, not 16"):
        Gram().attach(model)
    with pytest.raises(BadInput, match="random:"):
        Gram("random:x").check()


def test_the_same_on_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Classifier(3, 4).eval()
    network.save(tmp_path / "classifier")
    built = ClassifierGram(str(tmp_path / "classifier"), weight=2.0)
    built.check()
    built.setup("cpu")
    assert built.weight == 2.0
    images, targets = pair(16)
    total = torch.zeros(2)
    for ours, theirs in zip(network.maps(images), network.maps(targets), strict=True):
        _, channels, height, width = ours.shape
        one, two = (torch.einsum("bchw,bdhw->bcd", m, m) / (channels * height * width) for m in (ours, theirs))
        total += ((one - two) ** 2).mean((1, 2))
    with torch.no_grad():
        torch.testing.assert_close(built.distance(images, targets), total)
    images.requires_grad_()
    built.distance(images, targets).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert built.distance(targets, targets).abs().max() == 0
    with pytest.raises(BadInput, match="holds no readable classifier"):
        ClassifierGram(str(tmp_path)).check()
