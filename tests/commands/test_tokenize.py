"""`alitok tokenize`: what a cache holds, and what is never overwritten."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from alitok.artifacts.folder import load_tokenizer
from alitok.cli import run
from alitok.common.errors import BadInput
from alitok.data.pictures import center_crop, ten_crop, to_tensor
from alitok.data.shapes import Shapes
from alitok.data.token_cache import TokenCache
from alitok.data.token_shards import TokenShards


def tokenize(artifacts: Path, out: Path, *more: object, data: object = "shapes", tokenizer: str = "tokenizer") -> None:
    words = ["tokenize", "--tokenizer", artifacts / tokenizer, "--data", data, "--out", out, *more]
    run([str(word) for word in words])


def test_ten_crops_of_the_shapes(artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenize(artifacts, tmp_path / "cache", "--count", 12, "--batch", 50)  # 5 images at a time, the last 2
    said = capsys.readouterr().out
    assert "12 images" in said
    assert said.startswith("Data shapes: drawn shapes; images: 12 of train; 10 classes: circle,")
    assert said.splitlines()[1] == "Passed over or guessed: nothing."
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


def test_one_center_crop_of_a_folder(artifacts: Path, tmp_path: Path) -> None:
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


def test_columns_and_splits_of_a_table_by_name(artifacts: Path, tmp_path: Path) -> None:
    pictures, labels = zip(*Shapes("train", 32, 6), strict=True)
    table = datasets.load_from_disk(str(two_columns(tmp_path / "table")))
    datasets.DatasetDict(train=table, extra=table.select(range(2))).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(BadInput, match="needs one image column and has several: first, second"):
        tokenize(artifacts, tmp_path / "none", data=tmp_path / "data")
    assert not (tmp_path / "none").exists()
    names = ["--image-column", "second", "--label-column", "label", "--crops", "center"]
    tokenize(artifacts, tmp_path / "cache", *names, "--split", "extra", data=tmp_path / "data")
    cache, tokenizer = TokenCache(tmp_path / "cache"), load_tokenizer(artifacts / "tokenizer")
    assert cache.labels.tolist() == list(labels[:2])
    assert len(cache.class_names) == max(labels) + 1  # as training has them
    expected = tokenizer.encode(to_tensor(center_crop(pictures[-1], 32))[None].float() / 255)
    assert torch.equal(cache.gather(torch.tensor([0]), torch.tensor([0])), expected)
    with pytest.raises(BadInput, match="has no split 'exrta'"):
        tokenize(artifacts, tmp_path / "none", *names, "--split", "exrta", data=tmp_path / "data")


def two_columns(folder: Path) -> Path:
    """A table of six pictures in two columns, the second in the opposite order."""
    pictures, labels = zip(*Shapes("train", 32, 6), strict=True)
    features = datasets.Features(
        {"first": datasets.Image(), "second": datasets.Image(), "label": datasets.Value("int64")}
    )
    columns = {"first": list(pictures), "second": list(pictures[::-1]), "label": list(labels)}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))
    return folder


def stopping(number: int) -> Callable[..., None]:
    """`TokenShards.write`, killed before it writes this shard."""
    write = TokenShards.write

    def killed(self: TokenShards, shard: int, *rest: Any) -> None:
        if shard == number:
            raise KeyboardInterrupt
        write(self, shard, *rest)

    return killed


def test_two_image_columns_are_not_mixed_in_one_cache(artifacts: Path, tmp_path: Path) -> None:
    data = two_columns(tmp_path / "data")
    words = ["--images-per-shard", 2, "--crops", "center", "--image-column"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenShards, "write", stopping(1))
        with pytest.raises(KeyboardInterrupt):
            tokenize(artifacts, tmp_path / "cache", *words, "first", data=data)
    with pytest.raises(BadInput, match=r'other settings \(image column "first", not "second"\)'):
        tokenize(artifacts, tmp_path / "cache", *words, "second", data=data)
    tokenize(artifacts, tmp_path / "cache", *words, "first", data=data)
    with pytest.raises(BadInput, match="another tokenizer, data set, image column or crop recipe"):
        tokenize(artifacts, tmp_path / "cache", *words, "second", data=data)
    assert json.loads((tmp_path / "cache" / "alitok.json").read_text())["image_column"] == "first"


@pytest.mark.parametrize("record", ["alitok.json", "progress/job.json"])
def test_a_cache_of_a_version_that_recorded_no_column_is_still_good(
    artifacts: Path, tmp_path: Path, record: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--images-per-shard", 2, "--crops", "center", "--image-column", "first"]
    data = two_columns(tmp_path / "data")
    out = tmp_path / "cache"
    if record == "alitok.json":
        tokenize(artifacts, out, *words, data=data)
        about = out / record
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TokenShards, "write", stopping(1))
            with pytest.raises(KeyboardInterrupt):
                tokenize(artifacts, out, *words, data=data)
        about = out.with_name("cache.partial") / record
    content = json.loads(about.read_text())
    assert content.pop("image_column") == "first"
    about.write_text(json.dumps(content))
    capsys.readouterr()
    tokenize(artifacts, out, *words, data=data)
    assert len(TokenCache(out)) == 5  # one is held out
    assert ("is finished" in capsys.readouterr().out) == (record == "alitok.json")


def test_a_cache_at_a_link_to_an_empty_folder(artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    tokenize(artifacts, tmp_path / "link", "--count", 2)
    assert (tmp_path / "link").is_symlink()
    assert len(TokenCache(tmp_path / "disk")) == 2


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


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder whose train split has ten pictures, numbers 2 and 9 of them damaged; val has one."""
    for split, count in (("train", 10), ("val", 1)):
        folder = tmp_path / "pictures" / split / "circle"
        folder.mkdir(parents=True)
        for index in range(count):
            Shapes("train", 40, 10)[index][0].save(folder / f"{index}.png")
    for index in (2, 9):
        (tmp_path / "pictures" / "train" / "circle" / f"{index}.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.mark.parametrize("workers", [0, 1])
def test_no_picture_that_cannot_be_read_where_none_is_allowed(
    artifacts: Path, tmp_path: Path, pictures: Path, workers: int
) -> None:
    arguments = ["--batch", 10, "--workers", workers, "--images-per-shard", 2]
    with pytest.raises(BadInput, match=r"--max-skipped.*circle/2\.png"):
        tokenize(artifacts, tmp_path / "cache", *arguments, "--max-skipped", 0, data=pictures)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(BadInput, match=r"--max-skipped.*circle/9\.png"):  # two starts do not allow twice as many
        tokenize(artifacts, tmp_path / "cache", *arguments, "--max-skipped", 1, data=pictures)
    with pytest.raises(BadInput, match=r"--max-skipped.*circle/9\.png"):
        tokenize(artifacts, tmp_path / "cache", *arguments, "--max-skipped", 1, data=pictures)
    tokenize(artifacts, tmp_path / "cache", *arguments, "--max-skipped", 2, data=pictures)
    assert len(TokenCache(tmp_path / "cache")) == 8


@pytest.mark.parametrize("shard", [1, 3, 100])
def test_pictures_that_cannot_be_read_are_left_out_and_listed(
    artifacts: Path, tmp_path: Path, pictures: Path, shard: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--batch", 40, "--images-per-shard", shard]
    tokenize(artifacts, tmp_path / "cache", *arguments, data=pictures)
    assert "8 images" in (said := capsys.readouterr().out)
    assert "2 unreadable images left out" in said
    cache, tokenizer = TokenCache(tmp_path / "cache"), load_tokenizer(artifacts / "tokenizer")
    assert [skip["image"] for skip in cache.metadata["skipped"]] == [2, 9]
    assert "circle/2.png" in cache.metadata["skipped"][0]["reason"]
    shapes = Shapes("train", 40, 10)
    for row, index in enumerate([0, 1, 3, 4, 5, 6, 7, 8]):
        expected = tokenizer.encode(ten_crop(shapes[index][0], 32).float() / 255)
        assert torch.equal(cache.gather(torch.full((10,), row), torch.arange(10)), expected)
    assert len(datasets.load_from_disk(str(tmp_path / "cache"))) == 8
    tokenize(artifacts, tmp_path / "cache", *arguments, data=pictures)
    assert "is finished" in capsys.readouterr().out


def test_nothing_readable_is_no_cache(artifacts: Path, tmp_path: Path, pictures: Path) -> None:
    for file in pictures.glob("train/*/*.png"):
        file.write_bytes(b"")
    with pytest.raises(BadInput, match="No image of the data set could be read"):
        tokenize(artifacts, tmp_path / "cache", data=pictures)


def test_an_unfinished_cache_of_another_job_is_refused(artifacts: Path, tmp_path: Path, pictures: Path) -> None:
    arguments = ["--batch", 10, "--images-per-shard", 2]
    with pytest.raises(BadInput, match="--max-skipped"):
        tokenize(artifacts, tmp_path / "cache", *arguments, "--max-skipped", 1, data=pictures)
    kept = {path: path.read_bytes() for path in (tmp_path / "cache.partial").rglob("*") if path.is_file()}
    assert len(list((tmp_path / "cache.partial").glob("*.arrow"))) == 4
    for what, changed in [
        ("tokenizer", {"tokenizer": "stranger"}),
        ("crop recipe", {"more": ["--crops", "center"]}),
        ("data set", {"data": "shapes", "more": ["--count", 10]}),
        ("data set", {"more": ["--count", 9]}),
        ("size of shard", {"more": ["--images-per-shard", 3]}),
        ("precision", {"more": ["--precision", "bf16"]}),
    ]:
        more = [*arguments, *changed.pop("more", [])]
        with pytest.raises(BadInput, match=rf"unfinished token cache with other settings \({what} "):
            tokenize(artifacts, tmp_path / "cache", *more, **{"data": pictures, **changed})
    assert kept == {path: path.read_bytes() for path in kept}
    (pictures / "train" / "circle" / "more.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"other settings \(data set "):
        tokenize(artifacts, tmp_path / "cache", *arguments, data=pictures)


def test_a_finished_cache_of_another_data_set_is_refused(artifacts: Path, tmp_path: Path, pictures: Path) -> None:
    tokenize(artifacts, tmp_path / "cache", data=pictures)
    (pictures / "train" / "circle" / "8.png").rename(pictures / "train" / "circle" / "x.png")
    with pytest.raises(BadInput, match="another tokenizer, data set, image column or crop recipe"):
        tokenize(artifacts, tmp_path / "cache", data=pictures)
    with pytest.raises(BadInput, match="another tokenizer, data set, image column or crop recipe"):
        tokenize(artifacts, tmp_path / "cache", data=pictures, tokenizer="stranger")


def test_something_else_where_the_unfinished_cache_would_be(artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "cache.partial").mkdir()
    (tmp_path / "cache.partial" / "diary.txt").write_text("dear diary")
    with pytest.raises(BadInput, match="in the way"):
        tokenize(artifacts, tmp_path / "cache", "--count", 2)
    assert (tmp_path / "cache.partial" / "diary.txt").read_text() == "dear diary"


def test_bf16_is_said_and_close(artifacts: Path, tmp_path: Path) -> None:
    for precision in ("32", "tf32", "bf16"):
        tokenize(artifacts, tmp_path / precision, "--count", 20, "--precision", precision)
    caches = {name: TokenCache(tmp_path / name) for name in ("32", "tf32", "bf16")}
    assert [cache.metadata["precision"] for cache in caches.values()] == list(caches)
    every = torch.arange(20).repeat_interleave(10), torch.arange(10).repeat(20)
    ids = {name: cache.gather(*every) for name, cache in caches.items()}
    assert torch.equal(ids["32"], ids["tf32"])  # the same on a CPU
    assert 0.9 < (ids["32"] == ids["bf16"]).float().mean() < 1


@pytest.mark.parametrize(
    "wrong", [("--batch", 0), ("--images-per-shard", 0), ("--max-skipped", -1), ("--workers", -1), ("--count", 0)]
)
def test_wrong_numbers(artifacts: Path, tmp_path: Path, wrong: tuple[str, int]) -> None:
    with pytest.raises(BadInput, match="at least"):
        tokenize(artifacts, tmp_path / "cache", *wrong)
    assert list(tmp_path.iterdir()) == []
