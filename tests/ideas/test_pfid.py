"""pFID: its settings, and that it is the mean of plain FIDs."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.evaluation.classifier import Classifier, ClassifierExtractor
from alitok.evaluation.fid import FeatureStatistics, frechet_distance
from alitok.ideas.perturbation import PerturbedFID, Setting, deltas_of


def extractor() -> ClassifierExtractor:
    torch.manual_seed(0)
    return ClassifierExtractor(Classifier(num_classes=4, width=2), "random")


def tokenizer(codes: int) -> Any:
    return SimpleNamespace(
        codebook_size=codes, quantizer=SimpleNamespace(codebook_size=codes, sub_codes=1, nearest=True)
    )


def pictures(seed: int) -> torch.Tensor:
    return torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_settings_are_the_papers_and_for_other_codebooks_the_same_shares() -> None:
    metric = PerturbedFID(extractor(), tokenizer(4096))
    assert metric.reasons == []
    assert len(metric.settings) == 15
    assert metric.settings[0] == Setting(0.5, 50)
    assert metric.settings[-1] == Setting(0.9, 90)
    assert [deltas_of(size) for size in (1024, 2048, 24)] == [(10, 15, 20), (25, 35, 45), (2,)]
    assert PerturbedFID(extractor(), tokenizer(2048)).reasons


def test_it_is_the_mean_of_the_fids_of_all_settings() -> None:
    metric, network = PerturbedFID(extractor(), tokenizer(1024)), extractor()
    real = FeatureStatistics(network.num_features)
    real.update(network(pictures(0)).pooled)
    expected = []
    for number, setting in enumerate(metric.settings, 1):
        for part in pictures(number).split(4):
            metric.add(setting, part)
        fake = FeatureStatistics(network.num_features)
        fake.update(network(pictures(number)).pooled)
        expected.append(frechet_distance(fake, real))
    found = metric.compute(real)
    assert found["pfid"] == pytest.approx(sum(expected) / 15, rel=1e-6)
    assert list(found["pfid_by_setting"].values()) == pytest.approx(expected, rel=1e-6)
    assert "alpha 0.5, delta 15" in found["pfid_by_setting"]
    metric.reset()
    with pytest.raises(BadInput, match="at least 2"):
        metric.compute(real)
