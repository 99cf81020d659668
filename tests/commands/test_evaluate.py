"""`alitok evaluate`: numbers of known sets, and the record that says what they may be compared with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alitok.cli import run
from alitok.common.errors import BadInput
from alitok.common.files import sha256
from alitok.data.shapes import Shapes
from alitok.evaluation.classifier import Classifier, ClassifierExtractor, array_batches, train_classifier
from alitok.evaluation.statistics import FeatureStatistics

KEYS = {
    *("fid", "sfid", "inception_score", "precision", "recall", "samples", "reference", "extractor", "resize"),
    *("quantisation", "comparable", "reasons"),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, and twelve shapes as an .npz, as a folder and as stored statistics; and twelve others."""
    folder = tmp_path_factory.mktemp("sets")
    images = np.stack([np.asarray(image) for image, _ in Shapes("train", 32, 12)])
    pixels, labels = torch.from_numpy(images).permute(0, 3, 1, 2), torch.arange(12) % 10
    classifier = train_classifier(array_batches(pixels, labels), 10, steps=20, width=4)
    classifier.save(folder / "classifier")
    np.savez(folder / "shapes.npz", arr_0=images)
    (folder / "shapes").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / "shapes" / f"{index:03d}.png")
    np.savez(folder / "others.npz", arr_0=np.stack([np.asarray(image) for image, _ in Shapes("val", 32, 12)]))
    statistics = FeatureStatistics(16)
    statistics.update(ClassifierExtractor(classifier, "classifier")(pixels).pooled)
    statistics.save(folder / "statistics.npz")
    return folder


def evaluate(sets: Path, samples: str, reference: str, *more: object) -> dict[str, Any]:
    record = sets / "record.json"
    record.unlink(missing_ok=True)
    words = ["evaluate", sets / samples, "--reference", sets / reference, "--json", record]
    run([str(word) for word in [*words, "--extractor", sets / "classifier", *more]])
    return json.loads(record.read_text())


def test_record_of_an_npz_against_a_folder_of_the_same_images(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = evaluate(sets, "shapes.npz", "shapes", "--batch", 5)
    assert record.keys() == KEYS
    assert record["fid"] == pytest.approx(0, abs=1e-4)
    assert 1 <= record["inception_score"] <= 10
    assert (record["samples"], record["quantisation"], record["resize"]) == (12, "as stored", "none")
    assert record["reference"] == {"name": "shapes", "digest": "folder"}
    assert record["extractor"] == {"name": "classifier", "digest": Classifier.load(sets / "classifier").digest()}
    assert [record[name] for name in ("sfid", "precision", "recall")] == [None, None, None]
    assert record["comparable"] is False
    reasons = " | ".join(record["reasons"])
    for words in ("12 samples instead of 50,000", "classes of the samples", "not ADM's", "not the 2015 Inception"):
        assert words in reasons
    assert "no: 12 samples" in " ".join(capsys.readouterr().out.split())


def test_every_form_of_a_set_gives_the_same_numbers(sets: Path) -> None:
    first = evaluate(sets, "others.npz", "shapes.npz")
    assert first["fid"] > 0.01
    assert first["reference"] == {"name": "shapes.npz", "digest": sha256(sets / "shapes.npz")}
    stored = evaluate(sets, "others.npz", "statistics.npz", "--batch", 7)
    assert stored["fid"] == pytest.approx(first["fid"], rel=1e-5)
    assert stored["inception_score"] == pytest.approx(first["inception_score"], rel=1e-5)
    assert any("resolution of the reference is not known" in reason for reason in stored["reasons"])
    turned = evaluate(sets, "shapes", "others.npz")
    assert turned["fid"] == pytest.approx(first["fid"], rel=1e-5)  # the distance is symmetric


def test_another_size_is_a_reason(sets: Path) -> None:
    np.savez(sets / "large.npz", arr_0=np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), np.uint8))
    assert any("48 pixels" in reason for reason in evaluate(sets, "shapes", "large.npz")["reasons"])


@pytest.mark.parametrize(
    ("samples", "reference", "more", "words"),
    [
        ("none.npz", "shapes", [], r"none\.npz does not exist"),
        ("shapes", "none", [], "none does not exist"),
        ("statistics.npz", "shapes", [], "no array 'arr_0'"),
        ("shapes", "shapes", ["--batch", 0], "--batch must be at least 1"),
        ("shapes", "shapes", ["--extractor", "shapes.npz"], "shapes.npz"),
    ],
)
def test_refusals_write_no_record(
    sets: Path, samples: str, reference: str, more: list[object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sets)
    with pytest.raises(BadInput, match=words):
        evaluate(sets, samples, reference, *more)
    assert not (sets / "record.json").exists()


def test_statistics_of_another_extractor_are_refused(sets: Path) -> None:
    np.savez(sets / "wide.npz", mu=np.zeros(20), sigma=np.eye(20))
    with pytest.raises(BadInput):
        evaluate(sets, "shapes", "wide.npz")
