"""A classifier is saved and read whole; what cannot be read is named, with what to do."""

from pathlib import Path

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.networks.classifier import Classifier


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    classifier = Classifier(3, width=4).eval()
    classifier.save(tmp_path / "classifier")
    read = Classifier.load(tmp_path / "classifier")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(read(images), classifier(images), rtol=0, atol=0)
    assert read.digest() == classifier.digest()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_what_cannot_be_read_is_named(tmp_path: Path, file: str, content: bytes | None) -> None:
    folder = tmp_path / "classifier"
    Classifier(3, width=4).save(folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(BadInput, match="holds no readable classifier"):
        Classifier.load(folder)


def test_a_missing_folder_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"There is no folder .*; `alitok train-classifier --out .*` makes a classifier"):
        Classifier.load(tmp_path / "classifier")
