"""Sets that `alitok evaluate` measures."""

from pathlib import Path

import numpy as np
import pytest
import stand_in
import torch
from evaluating import save_pngs, shapes

from alitok.evaluation.classifier import ClassifierExtractor, array_batches, train_classifier
from alitok.evaluation.fid import FeatureStatistics


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, and twelve shapes as an .npz, as a folder and as stored statistics; and twelve others."""
    folder = tmp_path_factory.mktemp("sets")
    images = shapes("train", 12)
    pixels, labels = torch.from_numpy(images).permute(0, 3, 1, 2), torch.arange(12) % 10
    classifier = train_classifier(array_batches(pixels, labels), 10, steps=20, width=4)
    classifier.save(folder / "classifier")
    np.savez(folder / "shapes.npz", arr_0=images)
    save_pngs(folder / "shapes", images)
    np.savez(folder / "others.npz", arr_0=shapes("val", 12))
    statistics = FeatureStatistics(16)
    statistics.update(ClassifierExtractor(classifier, "classifier")(pixels).pooled)
    statistics.save(folder / "statistics.npz")
    return folder


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the Inception file; 100 samples; a reference in ADM's form of 120 images, 70 of them kept."""
    folder = tmp_path_factory.mktemp("inception")
    stand_in.write(folder / "network.pt")
    np.savez(folder / "samples.npz", shapes("val", 100))
    training = shapes("train", 120, 48)
    pooled, spatial, _ = stand_in.truth(training)
    arrays = {"mu": pooled.mean(axis=0), "sigma": np.cov(pooled.T)}
    arrays |= {"mu_s": spatial.mean(axis=0), "sigma_s": np.cov(spatial.T)}
    np.savez(folder / "reference.npz", arr_0=training[:70], **arrays)
    return folder
