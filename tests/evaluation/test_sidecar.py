"""What is known of samples: read where it is there, refused where it tells of something else."""

import json
from pathlib import Path
from typing import Any

import pytest

from alitok.common.errors import BadInput
from alitok.evaluation.sidecar import KEYS, read_sidecar, sidecar_labels, sidecar_path

KNOWN: dict[str, Any] = {
    "count": 12,
    "generator": {"name": "g", "digest": "d1"},
    "tokenizer": {"name": "t", "digest": "d2"},
    "guidance": 3.0,
    "power": 2,
    "schedule": "power-cosine",
    "temperature": 1.0,
    "seed": 5,
    "keep": None,
    "classes": "cycling",
    "num_classes": 10,
    "class_names": ["a"] * 10,
    "quantisation": "truncated",
    "image_size": 32,
    "alitok": "0.1.0",
}


def write(folder: Path, **changes: Any) -> Path:
    samples = folder / "samples.npz"
    (folder / "samples.json").write_text(json.dumps({**KNOWN, **changes}))
    return samples


def test_round_trip_and_labels(tmp_path: Path) -> None:
    known = read_sidecar(write(tmp_path), 12, 32)
    assert known == KNOWN
    labels = sidecar_labels(known, 12)
    assert labels is not None
    assert labels.tolist() == [*range(10), 0, 1]
    listed = sidecar_labels(read_sidecar(write(tmp_path, classes=[3] * 12), 12, 32), 12)
    assert listed is not None
    assert listed.tolist() == [3] * 12
    assert sidecar_labels(read_sidecar(write(tmp_path, classes=None), 12, 32), 12) is None
    assert sidecar_path(tmp_path) == tmp_path / "samples.json"  # of a folder of PNG


def test_nothing_is_known_without_the_file(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path / "samples.npz", 12, 32) == dict.fromkeys(KEYS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 13}, "describes 13 images, but .* has 12"),
        ({"count": None}, "has no count"),
        ({"image_size": 64}, "64 pixels"),
        ({"generator": "g"}, "generator should be a map with name and digest"),
        ({"seed": 1.5}, "seed should be a whole number"),
        ({"guidance": "3"}, "guidance should be a number"),
        ({"schedule": 3}, "schedule should be a text or a class block, not 3"),
        ({"schedule": [1]}, "schedule should be a text or a class block"),
        ({"schedule": {"name": "x"}}, "schedule should be a text or a class block"),
        ({"quantisation": "floor"}, "quantisation should be"),
        ({"classes": "sorted"}, "classes should be"),
        ({"classes": [1, 2]}, "classes of 2 of 12 images"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        read_sidecar(write(tmp_path, **changes), 12, 32)


def test_another_json_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[1]", '{"fid": 1}'):
        (tmp_path / "samples.json").write_text(text)
        with pytest.raises(BadInput, match=r"samples\.json should record how"):
            read_sidecar(tmp_path / "samples.npz", 12, 32)
