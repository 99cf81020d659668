import math

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.evaluation.inception_score import InceptionScore, inception_score


def probabilities(count: int, classes: int = 10, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(count, classes, generator=generator)).softmax(dim=1)


def test_by_hand() -> None:
    assert inception_score(torch.eye(4)) == pytest.approx(4.0, rel=1e-12)
    assert inception_score(torch.full((6, 4), 0.25)) == pytest.approx(1.0, rel=1e-12)
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    by_hand = (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25) + math.log(1 / 0.75)) / 2
    assert inception_score(p) == pytest.approx(math.exp(by_hand), rel=1e-12)


def test_splits_are_consecutive_and_the_order_matters() -> None:
    sorted_classes = torch.eye(4).repeat_interleave(4, dim=0)
    cycled = torch.eye(4).repeat(4, 1)
    assert inception_score(cycled, split_size=4) == pytest.approx(4.0)
    assert inception_score(sorted_classes, split_size=4) == pytest.approx(1.0)
    # a last, shorter split counts as one
    assert inception_score(cycled[:6], split_size=4) == pytest.approx((4 + 2) / 2)


def test_batches_and_index_equal_one_pass() -> None:
    p = probabilities(103)
    expected = inception_score(p, split_size=25)
    metric = InceptionScore(split_size=25)
    for batch in p.split(10):
        metric.update(batch)
    assert metric.compute()["inception_score"] == pytest.approx(expected, rel=1e-12)
    metric.reset()
    for rows in torch.randperm(103, generator=torch.Generator().manual_seed(1)).split(10):
        metric.update(p[rows], rows)
    assert metric.compute()["inception_score"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_agrees_with_torchmetrics_on_one_split() -> None:
    from torchmetrics.image.inception import InceptionScore as Reference

    class Identity(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    logits = 3 * torch.randn(200, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    reference = Reference(feature=Identity(), splits=1)
    reference.update(logits)
    assert inception_score(logits.softmax(dim=1)) == pytest.approx(float(reference.compute()[0]), rel=1e-10)


def test_failures() -> None:
    with pytest.raises(BadInput, match="no images"):
        InceptionScore().compute()
    with pytest.raises(BadInput, match="positive"):
        InceptionScore(split_size=0)
    metric = InceptionScore()
    metric.update(probabilities(3))
    with pytest.raises(BadInput, match="one extractor"):
        metric.update(probabilities(3, classes=4))
