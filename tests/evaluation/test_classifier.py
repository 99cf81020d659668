from pathlib import Path

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.evaluation.classifier import Classifier, ClassifierExtractor, array_batches, train_classifier


def pictures(count: int, seed: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """A colored square, disc or frame on a dark background, at a random place."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    grid = torch.arange(size, dtype=torch.float32)
    images = torch.zeros(count, 3, size, size)
    for image, label in zip(images, labels, strict=True):
        y, x = (torch.randint(10, size - 10, (2,), generator=generator)).tolist()
        dy, dx = (grid - y).abs()[:, None], (grid - x).abs()[None, :]
        square = (dy <= 7) & (dx <= 7)
        mask = (square, dy**2 + dx**2 <= 49, square & ~((dy <= 4) & (dx <= 4)))[int(label)]
        image[:] = torch.where(mask, 0.5 + 0.5 * torch.rand(3, 1, 1, generator=generator), torch.tensor(0.1))
    return (images * 255).to(torch.uint8), labels


def test_learns_and_reports_progress() -> None:
    images, labels = pictures(600, seed=0)
    seen: list[int] = []
    classifier = train_classifier(
        array_batches(images, labels, 32), 3, steps=150, width=8, progress=lambda step, loss: seen.append(step)
    )
    assert seen == list(range(1, 151))
    assert not classifier.training
    held_out, truth = pictures(300, seed=1)
    with torch.no_grad():
        accuracy = (classifier(held_out.float() / 255).argmax(dim=1) == truth).float().mean()
    assert accuracy > 0.9


def test_same_seed_same_weights_and_the_global_generator_is_untouched() -> None:
    images, labels = pictures(20, seed=0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    digests = [
        train_classifier(array_batches(images, labels, 8, seed), 3, steps=3, width=4, seed=seed).digest()
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("size", [16, 32, 64, 96])
def test_shapes_at_any_size(size: int) -> None:
    classifier = Classifier(num_classes=7, width=4).eval()
    images = torch.rand(2, 3, size, size)
    assert classifier(images).shape == (2, 7)
    assert classifier.features(images).shape == (2, 16) == (2, classifier.num_features)


def test_extractor_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    classifier = Classifier(num_classes=7, width=4)
    extractor = ClassifierExtractor(classifier, "classifier-shapes")
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    features = extractor(images)
    assert (extractor.stand_in, extractor.name, extractor.num_features) == (True, "classifier-shapes", 16)
    assert features.pooled.dtype == torch.float32
    torch.testing.assert_close(features.probabilities.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(features.probabilities, classifier(images.float() / 255).softmax(dim=1).detach())
    torch.testing.assert_close(features.pooled[2:3], extractor(images[2:3]).pooled)
    with pytest.raises(BadInput, match="uint8"):
        extractor(images.float())


def test_save_and_load(tmp_path: Path) -> None:
    classifier = Classifier(num_classes=3, width=4)
    classifier.save(tmp_path / "classifier")
    loaded = Classifier.load(tmp_path / "classifier")
    assert loaded.digest() == classifier.digest()
    assert not loaded.training
    assert sorted(path.name for path in (tmp_path / "classifier").iterdir()) == ["config.json", "model.safetensors"]

    (tmp_path / "classifier" / "config.json").write_text('{"num_classes": 4, "width": 4}')
    with pytest.raises(BadInput, match="no readable classifier"):
        Classifier.load(tmp_path / "classifier")
    (tmp_path / "classifier" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(BadInput, match="no readable classifier"):
        Classifier.load(tmp_path / "classifier")
    with pytest.raises(BadInput, match="There is no folder"):
        Classifier.load(tmp_path / "absent")


def test_failures() -> None:
    images, labels = pictures(4, seed=0)
    with pytest.raises(BadInput, match="as many labels"):
        next(array_batches(images, labels[:3]))
    with pytest.raises(BadInput, match="ended after 1 of 2"):
        train_classifier(iter([(images, labels)]), 3, steps=2, width=4)
    with pytest.raises(BadInput, match="there are 2 classes"):
        train_classifier([(images, labels)], 2, steps=1, width=4)
    with pytest.raises(BadInput, match="at least 1"):
        train_classifier([(images, labels)], 3, steps=0, width=4)
