import pickle
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_datamodule import joined, same
from test_sources import png, values

from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.data import streaming
from alitok.data.batches import TrainOrder
from alitok.data.datamodule import ImageNetDataModule
from alitok.data.sources import fingerprint, open_source


def write(path: Path, start: int, count: int, group: int, named: bool = True, **more) -> None:
    """`count` rows with the gray values start, start + 1, ...; the label is the value modulo 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array([{"bytes": png(start + i), "path": None} for i in range(count)])
    labels = pa.array([(start + i) % 3 for i in range(count)], pa.int64())
    table = pa.table({"image": images, "label": labels, **more})
    if named:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
        table = table.replace_schema_metadata(features.arrow_schema.metadata)
    pq.write_table(table, path, row_group_size=group)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "data" / "train-0.parquet", 0, 25, 10)
    write(tmp_path / "data" / "train-1.parquet", 25, 15, 10)
    write(tmp_path / "data" / "validation-0.parquet", 100, 6, 4)
    return tmp_path


@pytest.fixture(autouse=True)
def small_window(monkeypatch):
    monkeypatch.setattr(streaming, "WINDOW", 16)
    datasets.disable_progress_bars()


def test_the_same_rows_as_a_local_copy(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    for split in ("train", "val"):
        streamed, copied = (open_source(str(folder), split, streaming=on) for on in (True, False))
        assert values(streamed) == values(copied)
        assert [streamed[i][1] for i in range(len(streamed))] == copied.labels.tolist()
        assert streamed.class_names == copied.class_names == ["a", "b", "c"]
        assert "streamed" in streamed.description
    with pytest.raises(IndexError):
        streamed[6]


def test_nothing_but_row_groups_that_are_asked_for(folder, monkeypatch):
    read = []
    original = streaming.ParquetRows._read
    monkeypatch.setattr(
        streaming.ParquetRows, "_read", lambda self, block, *a: (read.append(block), original(self, block, *a))[1]
    )
    source = open_source(str(folder), streaming=True)
    assert source.blocks.tolist() == [0] * 10 + [1] * 10 + [2] * 5 + [3] * 10 + [4] * 5
    assert read == []
    assert [source[i][0].getpixel((0, 0))[0] for i in (12, 19, 39)] == [12, 19, 39]
    assert read == [1, 4]
    for i in range(40):
        source[i]
    assert len(source.rows._tables) <= source.rows.kept
    assert len(source.rows._opened) <= len(source.rows._tables)
    again = pickle.loads(pickle.dumps(source))
    assert values(again) == list(range(40))


def test_the_order_is_whole_mixed_and_local():
    sizes = torch.full((50,), 8)
    blocks = torch.repeat_interleave(torch.arange(50), sizes)
    window = streaming.window_blocks(blocks)
    order = streaming.mixed(400, blocks, stream(0))
    assert window == 2
    assert sorted(order.tolist()) == list(range(400))
    places = [(blocks[order] == block).nonzero().flatten() for block in range(50)]
    assert max(int(place.max() - place.min()) for place in places) <= 8 * (2 * window + 1)
    assert any(int(place.max() - place.min()) > 8 for place in places)
    in_use = [len(blocks[order[first : first + 8]].unique()) for first in range(0, 400, 8)]
    assert max(in_use) <= 2 * window + 1
    assert torch.equal(order, streaming.mixed(400, blocks, stream(0)))
    assert not torch.equal(order, streaming.mixed(400, blocks, stream(1)))
    epochs = TrainOrder(400, 40, 0, 0, 1, lambda: 0, blocks)
    seen = torch.cat([slots.indices for slots in islice(epochs, 20)]).reshape(2, 400)
    assert all(sorted(epoch.tolist()) == list(range(400)) for epoch in seen)
    assert not torch.equal(*seen)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_function_of_seed_and_position(folder, workers):
    def module(**options) -> ImageNetDataModule:
        data = ImageNetDataModule(str(folder), image_size=8, global_batch=5, streaming=True, **options)
        data.setup("fit")
        return data

    whole = list(islice(module().train_dataloader(), 16))
    assert sorted(joined(whole[:8])["index"].tolist()) == list(range(40))
    assert torch.equal(joined(whole)["image"][:, 0, 0, 0].long(), joined(whole)["index"])
    resumed = module(num_workers=workers)
    resumed.start_step = 6
    assert all(map(same, islice(resumed.train_dataloader(), 10), whole[6:]))
    validated = joined(list(resumed.val_dataloader()))
    assert sorted(validated["index"].tolist()) == list(range(6))


def test_a_share_held_out_and_a_count_stay_local(tmp_path):
    write(tmp_path / "train.parquet", 0, 40, 10)
    train, val = (open_source(str(tmp_path), split, val_fraction=0.25, streaming=True) for split in ("train", "val"))
    assert sorted(values(train) + values(val)) == list(range(40))
    assert train.blocks.tolist() == [value // 10 for value in values(train)]
    assert fingerprint(train) != fingerprint(val)


@pytest.mark.parametrize("options", [{"val_fraction": 0.1}, {"val_fraction": 0.1, "count": 60, "val_count": 12}])
def test_few_images_of_many_row_groups_read_each_group_once(tmp_path, monkeypatch, options):
    write(tmp_path / "train.parquet", 0, 240, 6)  # 40 groups, of which 3 are mixed
    read = []
    original = streaming.ParquetRows._read
    monkeypatch.setattr(
        streaming.ParquetRows, "_read", lambda self, block, *a: (read.append(block), original(self, block, *a))[1]
    )
    data = ImageNetDataModule(str(tmp_path), image_size=8, global_batch=5, streaming=True, **options)
    data.setup("fit")
    seen = len(joined(list(data.val_dataloader()))["index"])
    assert seen == options.get("val_count", 24)
    assert len(read) == len(set(read)) <= seen
    read.clear()
    steps = len(data.splits["train"].source) // 5
    joined(list(islice(data.train_dataloader(), steps)))
    assert len(read) == len(set(read)) <= 40


def test_files_are_closed_when_their_rows_are_forgotten(tmp_path):
    for number in range(12):
        write(tmp_path / f"train-{number:02d}.parquet", 4 * number, 4, 2)
    rows = open_source(str(tmp_path), streaming=True, val_fraction=0.0).rows
    opened = [rows.row(index, ["label"]) and set(rows._opened) for index in range(len(rows))]
    assert set.union(*opened) == set(range(12))
    assert max(map(len, opened)) <= rows.kept
    assert opened[-1] == {rows.groups[block][0] for block in rows._tables}


def test_the_order_of_a_whole_streamed_source_is_that_of_its_blocks(folder):
    data = ImageNetDataModule(str(folder), image_size=8, global_batch=5, streaming=True)
    data.setup("fit")
    order = torch.cat([slots.indices for slots in islice(data.train_dataloader().order, 8)])
    blocks = data.splits["train"].source.blocks
    assert torch.equal(order, streaming.mixed(40, blocks, stream(0, "order", 0)))
    assert order.tolist()[:10] == [12, 14, 11, 10, 18, 15, 13, 36, 16, 37]  # as version 0.1 drew it


def test_labels_without_names_are_read_at_first(tmp_path):
    write(tmp_path / "train.parquet", 0, 7, 3, named=False)
    write(tmp_path / "val.parquet", 1, 1, 3, named=False)
    train, val = (open_source(str(tmp_path), split, streaming=True) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["0", "1", "2"]
    assert (train[5][1], val[0][1]) == (2, 1)


def test_what_cannot_be_streamed(folder, tmp_path):
    with pytest.raises(BadInput, match="cannot be streamed"):
        open_source("shapes-folder/x/y", streaming=True)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "train-0.tar").write_bytes(b"")
    with pytest.raises(BadInput, match="not made of parquet files"):
        open_source(str(tmp_path / "tars"), streaming=True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match="Cannot read the parquet files"):
        open_source(str(tmp_path / "bad"), streaming=True)
    source = open_source(str(folder), streaming=True)
    (folder / "data" / "train-0.parquet").unlink()
    with pytest.raises(BadInput, match="Cannot read the row group in row 0"):
        source[0]


def test_damaged_rows(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    images = pa.array([{"bytes": content, "path": None} for content in (b"broken", None, png(1))])
    table = pa.table({"image": images, "label": pa.array([0, 0, 1])})
    pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), tmp_path / "train.parquet")
    source = open_source(str(tmp_path), val_fraction=0, streaming=True)
    for row, message in [
        (0, "Cannot read the image in row 0"),
        (1, "no image in row 1"),
        (2, "the label 1, not one of 1"),
    ]:
        with pytest.raises(BadInput, match=message):
            source[row]


def test_a_hub_data_set_is_not_downloaded(folder, monkeypatch):
    files = {
        "train": [f"file://{folder}/data/train-0.parquet", f"file://{folder}/data/train-1.parquet"],
        "validation": [f"file://{folder}/data/validation-0.parquet"],
    }
    builder = SimpleNamespace(config=SimpleNamespace(data_files=files))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train", "validation"])
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: builder)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert values(open_source("some/dataset", "train", streaming=True)) == list(range(40))
    assert values(open_source("some/dataset", "val", streaming=True)) == list(range(100, 106))
