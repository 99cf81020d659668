import pytest
import torch

from alitok.common.errors import BadInput
from alitok.evaluation.classifier import Classifier, ClassifierExtractor
from alitok.evaluation.fid import FeatureStatistics, frechet_distance
from alitok.evaluation.generation import GenerationMetrics
from alitok.evaluation.inception_score import inception_score


def test_one_pass_gives_both_numbers() -> None:
    torch.manual_seed(0)
    extractor = ClassifierExtractor(Classifier(num_classes=4, width=2), "random")
    images = torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8)
    reference = FeatureStatistics(8)
    reference.update(extractor(torch.randint(0, 200, (20, 3, 16, 16), dtype=torch.uint8)).pooled)

    metric = GenerationMetrics(extractor, reference, split_size=10)
    for batch in images.split(7):
        metric.update(batch)
    features = extractor(images)
    statistics = FeatureStatistics(8)
    statistics.update(features.pooled)
    assert metric.statistics.count == 30
    assert metric.compute() == pytest.approx(
        {
            "fid": frechet_distance(statistics, reference),
            "inception_score": inception_score(features.probabilities, split_size=10),
        },
        rel=1e-5,
    )
    metric.reset()
    with pytest.raises(BadInput, match="no images"):
        metric.compute()
    assert set(_scored(GenerationMetrics(extractor), images)) == {"inception_score"}
    with pytest.raises(BadInput, match="one extractor"):
        _scored(GenerationMetrics(extractor, FeatureStatistics(3)), images)


def _scored(metric: GenerationMetrics, images: torch.Tensor) -> dict[str, float]:
    metric.update(images)
    return metric.compute()
