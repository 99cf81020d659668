"""Linear probes of a tokenizer's parts, and how stable its ids are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEMO

from alitok.artifacts.folder import load_tokenizer, save_artifact
from alitok.cli import run
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.config import compose_run
from alitok.data.reading import read_all
from alitok.data.shapes import Shapes
from alitok.studies import small
from alitok.studies.features import measure_features, stability


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tokenizer and a generator of its tokens."""
    place = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    block = small._reduced(compose_run([DEMO / "tokenizer-stage1.yaml"])["model"]["init_args"]["tokenizer"])
    card = save_artifact(place / "tokenizer", block, build(block), {"kind": "tokenizer"})
    block = small._reduced(compose_run([DEMO / "generator.yaml"])["model"]["init_args"]["generator"])
    save_artifact(place / "generator", block, build(block), {"kind": "generator", "tokenizer": card["digest"]})
    return place


def test_a_verb_measures_all(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "probe",
        "--tokenizer",
        str(folder / "tokenizer"),
        "--data",
        "shapes",
        "--images",
        "60",
        "--held-out",
        "20",
    ]
    words += ["--steps", "1", "--width", "64", "--depth", "1", "--batch", "8", "--json", str(tmp_path / "p.json")]
    run([*words, "--features", "--generator", str(folder / "generator")])
    record = json.loads((tmp_path / "p.json").read_text())
    for name in ("probe_encoder", "probe_decoder", "probe_random_encoder", "probe_generator", "ids_same_shifted"):
        assert 0 <= record[name] <= 1
    assert record["ids_same_noisy"] > record["ids_same_shifted"]  # two grey levels are less than a pixel's shift
    out = capsys.readouterr().out
    assert "from a random encoder's" in out
    assert "under noise of 2 grey levels" in out


def test_a_probe_is_the_same_every_time_and_the_trained_encoder_is_the_one_given(folder: Path) -> None:
    tokenizer: Any = load_tokenizer(folder / "tokenizer")
    train, held_out = (read_all(Shapes(split, 64, count=60), 64) for split in ("train", "val"))
    first, second = (measure_features(tokenizer, train, held_out) for _ in range(2))
    assert first == second
    assert first["probe_encoder"] > 0.1


def test_ids_of_a_constant_picture_stay_under_a_shift(folder: Path) -> None:
    tokenizer: Any = load_tokenizer(folder / "tokenizer")
    flat = torch.full((3, 3, 64, 64), 77, dtype=torch.uint8)
    assert stability(tokenizer, flat)["ids_same_shifted"] == 1.0


def test_features_need_pictures(folder: Path) -> None:
    with pytest.raises(BadInput, match="--features reads pictures"):
        run(["probe", str(folder), "--features"])
    with pytest.raises(BadInput, match="--generator belongs to --features"):
        run(["probe", str(folder), "--generator", "x"])
