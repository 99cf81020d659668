import math

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.common.images import to_uint8
from alitok.evaluation.classifier import Classifier, ClassifierExtractor
from alitok.evaluation.fid import FeatureStatistics, frechet_distance
from alitok.evaluation.reconstruction import ReconstructionMetrics


def pairs(count: int = 12, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, size, size, generator=generator)
    strength = torch.linspace(0.01, 0.3, count).view(-1, 1, 1, 1)
    return images, (images + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def extractor() -> ClassifierExtractor:
    torch.manual_seed(0)
    return ClassifierExtractor(Classifier(num_classes=4, width=2), "random")


def test_psnr_is_the_mean_over_images_not_of_the_pooled_error() -> None:
    images, reconstructions = pairs()
    metric = ReconstructionMetrics()
    metric.update(images, reconstructions)
    errors = (images - reconstructions).double().square().mean(dim=(1, 2, 3))
    by_hand = (10 * torch.log10(1 / errors)).mean()
    assert metric.compute()["psnr"] == pytest.approx(float(by_hand), rel=1e-6)
    assert metric.compute()["psnr"] != pytest.approx(10 * math.log10(1 / errors.mean()), abs=0.5)


def test_constant_error_by_hand_and_exact_copies_stay_finite() -> None:
    images = torch.full((2, 3, 16, 16), 0.5)
    metric = ReconstructionMetrics()
    metric.update(images, images + 0.1)
    assert metric.compute()["psnr"] == pytest.approx(20.0, abs=1e-4)
    metric.reset()
    metric.update(images, images)
    assert metric.compute() == {"psnr": pytest.approx(100.0), "ssim": pytest.approx(1.0)}


def test_batches_of_unequal_size_equal_one_pass() -> None:
    images, reconstructions = pairs()
    whole, parts = ReconstructionMetrics(extractor()), ReconstructionMetrics(extractor())
    whole.update(images, reconstructions)
    for rows in torch.arange(12).split(5):
        parts.update(images[rows], reconstructions[rows])
    expected = whole.compute()
    assert set(expected) == {"psnr", "ssim", "rfid"}
    assert parts.compute() == pytest.approx(expected, rel=1e-5)


def test_rfid_is_of_quantized_images() -> None:
    images, reconstructions = pairs()
    metric = ReconstructionMetrics(extractor(), quantization="round")
    metric.update(images, reconstructions)
    statistics = [FeatureStatistics(8), FeatureStatistics(8)]
    for each, batch in zip(statistics, (images, reconstructions), strict=True):
        each.update(extractor()(to_uint8(batch, "round")).pooled)
    assert metric.compute()["rfid"] == pytest.approx(frechet_distance(*statistics), rel=1e-9)


def test_failures() -> None:
    images, reconstructions = pairs(2)
    metric = ReconstructionMetrics()
    with pytest.raises(BadInput, match="no images"):
        metric.compute()
    with pytest.raises(BadInput, match=r"must be \(B, 3, H, W\)"):
        metric.update(images, reconstructions[:1])
    with pytest.raises(BadInput, match="NaN"):
        metric.update(images, reconstructions * float("nan"))
    with pytest.raises(BadInput, match="no images"):
        metric.compute()


def test_to_uint8_truncates_or_rounds() -> None:
    images = torch.tensor([-0.5, 0.0, 0.9 / 255, 254.5001 / 255, 1.0, 2.0])
    assert to_uint8(images).tolist() == [0, 0, 0, 254, 255, 255]
    assert to_uint8(images, "round").tolist() == [0, 0, 1, 255, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 255), levels)
    with pytest.raises(BadInput, match="truncate"):
        to_uint8(images, "floor")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="float in"):
        to_uint8(levels)
