import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alitok.evaluation.extractors import Features
from alitok.evaluation.record import (
    EvaluationRecord,
    ImagesRecord,
    Named,
    reasons_against,
    reasons_against_reconstruction,
)
from alitok.evaluation.reference import ADM_KEYS


@dataclass(frozen=True)
class Network:
    name: str = "inception-2015-12-05"
    digest: str = "abc"
    num_features: int = 2048
    num_spatial: int = 2023
    stand_in: bool = False
    resize: str = "inside"

    def __call__(self, images: torch.Tensor) -> Features:
        raise NotImplementedError


def facts(**changes: Any) -> dict[str, Any]:
    published = {
        "samples": 50_000,
        "labels": torch.arange(50_000) % 1000,
        "lossless": True,
        "sample_size": 256,
        "reference_keys": set(ADM_KEYS),
        "reference_size": 256,
        "extractor": Network(),
    }
    return {**published, **changes}


def test_the_published_protocol_has_nothing_against_it() -> None:
    assert reasons_against(**facts()) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"samples": 10_000, "labels": torch.arange(10_000) % 1000}, "10,000 samples"),
        ({"labels": None}, "not known"),
        ({"labels": (torch.arange(50_000) % 1000).sort().values}, "cycle"),
        ({"lossless": False}, "losslessly"),
        ({"protocol": "clean"}, "clean-fid's clean"),
        ({"unknown": ("seed", "guidance")}, "nothing tells the seed, guidance"),
        ({"reference_keys": {"mu", "sigma", "arr_0"}}, "mu_s, sigma_s"),
        ({"reference_size": 512}, "512"),
        ({"reference_size": None}, "resolution"),
        ({"reference_made_of": "validation images"}, "made of validation images, not of training images"),
        ({"reference_made_of": "samples"}, "made of samples"),
        ({"extractor": Network(stand_in=True)}, "not the 2015 Inception"),
    ],
)
def test_each_departure_is_one_reason(changes: dict[str, Any], word: str) -> None:
    reasons = reasons_against(**facts(**changes))
    assert len(reasons) == 1
    assert word in reasons[0]


def test_unequal_counts_and_other_class_numbers_are_told() -> None:
    for labels in (torch.arange(50_000) % 10, torch.zeros(50_000, dtype=torch.long), torch.arange(50_000) % 1001):
        assert any("equal counts" in reason for reason in reasons_against(**facts(labels=labels)))


def test_labels_that_are_no_class_numbers_cost_no_memory() -> None:
    """A count for each number up to the largest would take 8 EiB."""
    for largest in (1000, 2**62):
        labels = torch.arange(50_000) % 1000
        labels[7] = largest
        reasons = reasons_against(**facts(labels=labels))
        assert ["equal counts" in reasons[0], "cycle" in reasons[1]] == [True, True]


def test_reasons_against_a_reconstruction() -> None:
    good: dict[str, Any] = {
        "images": 50_000,
        "own_images": True,
        "made_of_known": False,
        "held_out": False,
        "extractor": Network(),
    }
    assert reasons_against_reconstruction(**good) == []
    assert reasons_against_reconstruction(**{**good, "own_images": False, "made_of_known": True}) == []
    for change, word in (
        ({"images": 5000}, "5,000 images"),
        ({"own_images": False}, "what the reference is made of"),
        ({"held_out": True}, "held out"),
        ({"extractor": Network(stand_in=True)}, "not the 2015 Inception"),
        ({"protocol": "legacy_pytorch"}, "legacy_pytorch"),
    ):
        (reason,) = reasons_against_reconstruction(**{**good, **change})
        assert word in reason


def test_record_has_the_contracts_keys(tmp_path: Path) -> None:
    record = EvaluationRecord(
        measure="gFID",
        samples=ImagesRecord("samples.npz", "d0", 100, 32),
        reference=Named("real.npz", "d1"),
        extractor=Named("classifier", "d2"),
        protocol="adm",
        resize="none",
        quantisation="truncated",
        fid=3.5,
        reasons=["100 samples instead of 50,000"],
    )
    record.save(tmp_path / "record.json")
    stored = json.loads((tmp_path / "record.json").read_text())
    assert set(stored) >= {
        *("fid", "sfid", "inception_score", "precision", "recall", "samples", "reference", "extractor"),
        *("resize", "quantisation", "generator", "tokenizer", "guidance", "temperature", "seed"),
        *("comparable", "reasons"),
    }
    assert stored["comparable"] is False
    assert stored["sfid"] is None
    assert stored["samples"] == {"name": "samples.npz", "digest": "d0", "count": 100, "image_size": 32}
    assert stored["extractor"] == {"name": "classifier", "digest": "d2"}
    assert replace(record, reasons=[]).comparable
