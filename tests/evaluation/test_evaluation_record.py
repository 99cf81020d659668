import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from alitok.evaluation.extractors import Features
from alitok.evaluation.record import ADM_KEYS, EvaluationRecord, Named, reasons_against


@dataclass(frozen=True)
class Network:
    name: str = "inception-2015-12-05"
    digest: str = "abc"
    num_features: int = 2048
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
        ({"reference_keys": {"mu", "sigma", "arr_0"}}, "mu_s, sigma_s"),
        ({"reference_size": 512}, "512"),
        ({"reference_size": None}, "resolution"),
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


def test_record_has_the_contracts_keys(tmp_path: Path) -> None:
    record = EvaluationRecord(
        samples=100,
        reference=Named("real.npz", "d1"),
        extractor=Named("classifier", "d2"),
        resize="none",
        quantisation="truncate",
        fid=3.5,
        reasons=["100 samples instead of 50,000"],
    )
    record.save(tmp_path / "record.json")
    stored = json.loads((tmp_path / "record.json").read_text())
    assert set(stored) == {
        *("fid", "sfid", "inception_score", "precision", "recall", "samples", "reference", "extractor"),
        *("resize", "quantisation", "comparable", "reasons"),
    }
    assert stored["comparable"] is False
    assert stored["sfid"] is None
    assert stored["extractor"] == {"name": "classifier", "digest": "d2"}
    assert EvaluationRecord(1, Named("a", "b"), Named("c", "d"), "none", "round").comparable
