"""`alitok train-classifier`: features for a FID without a download."""

from pathlib import Path

import pytest
from PIL import Image

from alitok.cli import main, run
from alitok.common.errors import BadInput
from alitok.networks.classifier import Classifier

SMALL = "--data shapes --size 32 --width 8"


def train(out: Path, more: str) -> None:
    run(["train-classifier", *SMALL.split(), *more.split(), "--out", str(out)])


def test_it_learns_says_how_well_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "a", "--count 600 --steps 60")
    said = capsys.readouterr().out
    share = float(said.splitlines()[-1].split("; ")[1].split("%")[0])
    assert share > 20, said  # chance is 10
    network = Classifier.load(tmp_path / "a")
    assert (network.num_classes, network.num_features) == (10, 32)
    assert network.digest()[:12] in said
    train(tmp_path / "b", "--count 600 --steps 60")
    assert Classifier.load(tmp_path / "b").digest() == network.digest()


@pytest.mark.parametrize(
    ("more", "words"), [("--size 8", "--size must be at least 16"), ("--steps 0", "--steps must be at least 1")]
)
def test_what_cannot_be_trained_is_said_at_once(tmp_path: Path, more: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        train(tmp_path / "a", more)


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="exists already"):
        train(tmp_path, "")


def test_a_place_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SystemExit):
        main(["train-classifier", "--data", "nowhere", "--out", str(tmp_path / "file" / "clf")])
    assert "is no folder that can be written" in capsys.readouterr().err


def test_a_picture_held_out_that_cannot_be_read_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / "data" / split / name / "0.png")
    (tmp_path / "data" / "val" / "b" / "0.png").write_bytes(b"no picture")
    monkeypatch.setattr("alitok.evaluation.classifier.train_and_save", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(BadInput, match=r"Cannot read the image .*val/b/0\.png"):
        run(["train-classifier", "--data", str(tmp_path / "data"), "--size", "32", "--out", str(tmp_path / "a")])
