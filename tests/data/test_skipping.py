import logging
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_datamodule import joined, same

from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.data.datamodule import ImageNetDataModule
from alitok.data.sources import fingerprint, open_source

BROKEN = {3: "a/3.png", 9: "b/1.png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixteen train and six validation pictures of two classes; image i of a split has the red value i."""
    for split, each in (("train", 8), ("val", 3)):
        for number in range(2 * each):
            file = tmp_path / split / "ab"[number // each] / f"{number % each}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (18, 20), (number, 0, 0)).save(file)
    return tmp_path


@pytest.fixture
def broken(folder: Path) -> Path:
    (folder / "train" / BROKEN[3]).write_bytes((folder / "train" / BROKEN[3]).read_bytes()[:40])
    (folder / "train" / BROKEN[9]).write_bytes(b"no image")
    (folder / "val" / "a" / "1.png").write_bytes(b"")
    return folder


def module(folder: Path, **options) -> ImageNetDataModule:
    data = ImageNetDataModule(str(folder), image_size=16, global_batch=4, **{"micro_batch": 2, **options})
    data.setup("fit")
    return data


def batches(data: ImageNetDataModule, number: int) -> dict[str, torch.Tensor]:
    return joined(list(islice(data.train_dataloader(), number)))


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_takes_the_place_of_a_broken_one(broken, workers, caplog):
    data = module(broken, num_workers=workers)
    with caplog.at_level(logging.WARNING, "alitok"):
        batch = batches(data, 8)
    assert batch["position"].tolist() == list(range(32))
    plain = module(broken)
    order = torch.cat([slots.indices for slots in islice(plain.train_dataloader().order, 8)])
    for position, (wanted, got) in enumerate(zip(order.tolist(), batch["index"].tolist(), strict=True)):
        expected, attempt = wanted, 0
        while expected in BROKEN:
            draw = stream(0, "replacement", position, attempt)
            expected, attempt = int(torch.randint(16, (1,), generator=draw)), attempt + 1
        assert got == expected
    assert torch.equal(batch["image"][:, 0, 0, 0].long(), batch["index"])
    assert torch.equal(batch["label"], batch["index"] // 8)
    assert data.skipped == 2
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2  # each is named once, however often it comes
    assert all(any(name in message for message in messages) for name in BROKEN.values())
    assert "2 so far" in messages[1]
    assert same(batch, batches(plain, 8))


def test_pictures_that_are_whole_do_not_change(folder):
    whole = batches(module(folder), 4)
    (folder / "train" / BROKEN[3]).write_bytes(b"")
    damaged = batches(module(folder), 4)
    kept = whole["index"] != 3
    assert kept.sum() == 15
    assert torch.equal(whole["image"][kept], damaged["image"][kept])


def test_validation_leaves_a_broken_image_out(broken):
    data = module(broken)
    seen = joined(list(data.val_dataloader()))
    assert sorted(seen["index"].tolist()) == [0, 2, 3, 4, 5]
    assert len(seen["image"]) == len(seen["position"]) == 5
    for file in broken.glob("val/*/*.png"):
        file.write_bytes(b"")
    with pytest.raises(BadInput, match="No image of a validation batch of 2 can be read"):
        list(module(broken).val_dataloader())


def test_a_validation_batch_of_one_that_cannot_be_read_names_the_option(broken):
    """A batch without images would leave the other devices waiting."""
    with pytest.raises(BadInput, match=r"batch of 1 can be read; .*data\.micro_batch .*: Cannot .*val/a/1\.png"):
        list(module(broken, micro_batch=1).val_dataloader())


def test_the_limit(broken):
    with pytest.raises(BadInput, match=r"^Cannot read the image .*; replace or remove it"):
        batches(module(broken, max_skipped=0), 8)
    with pytest.raises(BadInput, match="2 images cannot be read, more than max_skipped = 1; the last: Cannot read"):
        batches(module(broken, max_skipped=1), 8)
    for file in broken.glob("train/*/*.png"):
        file.write_bytes(b"")
    with pytest.raises(BadInput, match="20 images in a row cannot be read"):
        batches(module(broken, max_skipped=1000), 1)


def test_other_bad_input_is_not_skipped(folder):
    data = module(folder)
    data.splits["train"].source = OneSentence()
    with pytest.raises(BadInput, match="the cable is out"):
        next(iter(data.train_dataloader()))


class OneSentence:
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> None:
        raise BadInput("the cable is out")


def test_fingerprints_follow_what_is_in_a_data_set(folder, tmp_path_factory):
    def of(root: Path, split: str = "train", **options) -> str:
        return fingerprint(open_source(str(root), split, **options))

    moved = tmp_path_factory.mktemp("moved") / "elsewhere"
    first = of(folder)
    folder.rename(moved)
    assert of(moved) == first
    others = {first, of(moved, "val"), of(moved, count=9), of(moved, count=9, seed=1)}
    (moved / "train" / "a" / "7.png").rename(moved / "train" / "b" / "9.png")
    others.add(of(moved))
    (moved / "train" / "b" / "9.png").rename(moved / "train" / "b" / "8.png")
    others.add(of(moved))
    assert len(others) == 6
    shapes = {
        fingerprint(open_source("shapes", s, count=4, seed=n, size=z))
        for s, n, z in [("train", 0, 16), ("val", 0, 16), ("train", 1, 16), ("train", 0, 32)]
    }
    assert len(shapes) == 4
