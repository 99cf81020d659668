"""`alitok tokenize`: what a cache holds, and what is never overwritten."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from alitok.artifacts.folder import load_tokenizer
from alitok.cli import run
from alitok.common.errors import BadInput
from alitok.data.shapes import Shapes
from alitok.data.token_cache import TokenCache
from alitok.data.transforms import center_crop, ten_crop, to_tensor


def tokenize(artifacts: Path, out: Path, *more: object, data: object = "shapes", tokenizer: str = "tokenizer") -> None:
    words = ["tokenize", "--tokenizer", artifacts / tokenizer, "--data", data, "--out", out, *more]
    run([str(word) for word in words])


def test_ten_crops_of_the_shapes(artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenize(artifacts, tmp_path / "cache", "--count", 12, "--batch", 50)  # 5 images at a time, the last 2
    assert "12 images" in capsys.readouterr().out
    cache, tokenizer = TokenCache(tmp_path / "cache"), load_tokenizer(artifacts / "tokenizer")
    assert (len(cache), cache.views, cache.num_tokens, cache.codebook_size) == (12, 10, 21, 24)
    assert cache.digest == tokenizer.card["digest"]
    assert cache.recipe == {"crop": "ten", "resize": 35, "size": 32}
    shapes = Shapes("train", 32, 12)
    assert cache.class_names == shapes.class_names
    assert cache.labels.tolist() == [label for _, label in shapes]
    for index, (image, _) in enumerate(shapes):
        expected = tokenizer.encode(ten_crop(image, 32).float() / 255)
        assert torch.equal(cache.gather(torch.full((10,), index), torch.arange(10)), expected)


def test_one_centre_crop_of_a_folder(artifacts: Path, tmp_path: Path) -> None:
    shapes = Shapes("train", 48, 6)
    for index, (image, label) in enumerate(shapes):
        for part, offset in (("train", 0), ("val", 1)):
            folder = tmp_path / "pictures" / part / shapes.class_names[label % 2]
            folder.mkdir(parents=True, exist_ok=True)
            image.crop((0, 0, 48, 40 + offset)).save(folder / f"{index}.png")
    cache, tokenizer = {}, load_tokenizer(artifacts / "tokenizer")
    for split in ("train", "val"):
        arguments = ["--crops", "center", "--split", split]
        tokenize(artifacts, tmp_path / split, *arguments, data=tmp_path / "pictures")
        cache[split] = TokenCache(tmp_path / split)
    assert (len(cache["val"]), cache["val"].views, cache["val"].class_names) == (6, 1, ["circle", "square"])
    assert cache["val"].recipe == {"crop": "center", "resize": 32, "size": 32}
    with Image.open(tmp_path / "pictures" / "val" / "circle" / "0.png") as image:
        expected = tokenizer.encode(to_tensor(center_crop(image.convert("RGB"), 32))[None].float() / 255)
    assert torch.equal(cache["val"].gather(torch.tensor([0]), torch.tensor([0])), expected)
    everything = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    assert not torch.equal(cache["train"].gather(*everything), cache["val"].gather(*everything))


def test_a_finished_cache_is_left_alone(artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenize(artifacts, tmp_path / "cache", "--count", 2)
    before = (tmp_path / "cache" / "alitok.json").stat().st_mtime_ns
    capsys.readouterr()
    tokenize(artifacts, tmp_path / "cache", "--count", 2)
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "cache" / "alitok.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "cache" / "alitok.json").read_text())["images"] == 2


def test_a_folder_that_holds_something_else_is_kept(artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(BadInput, match="something else than a token cache"):
        tokenize(artifacts, tmp_path / "mine", "--count", 2)
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear diary"
    with pytest.raises(BadInput, match="something else than a token cache"):
        tokenize(artifacts, tmp_path / "mine" / "diary.txt", "--count", 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_read_leaves_no_cache(artifacts: Path, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "pictures" / "train" / "circle"
    folder.mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (40, 40), (index, 0, 0)).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"2\.png"):
        tokenize(artifacts, tmp_path / "cache", "--batch", 10, "--workers", workers, data=tmp_path / "pictures")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
