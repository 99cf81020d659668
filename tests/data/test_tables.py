"""Tables, webdatasets, saved data sets and hub names as sources."""

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_sources import parquet, png, told, values

from alitok.common.errors import BadInput
from alitok.data.sources import open_source
from alitok.data.splits import NAMES


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_label_is_not_taken_by_its_type_alone(tmp_path, streaming):
    parquet(tmp_path / "t" / "train.parquet", 0, 8, id=pa.array(range(8)), label=pa.array(["cat", "dog"] * 4))
    source = open_source(str(tmp_path / "t"), val_fraction=0, streaming=streaming)
    assert source.class_names == ["cat", "dog"]
    assert source.origin.columns == {"image": "img", "label": "label"}
    parquet(tmp_path / "ids" / "train.parquet", 0, 8, id=pa.array(range(8)))
    with pytest.raises(BadInput, match="column id holds another number in every row"):
        open_source(str(tmp_path / "ids"), val_fraction=0, streaming=streaming)
    parquet(tmp_path / "kind" / "train.parquet", 0, 4, kind=pa.array([0, 3, 0, 3]))
    lines = told(open_source(str(tmp_path / "kind"), val_fraction=0, streaming=streaming))
    assert [line.split(":")[0] for line in lines] == ["column kind", "classes without a picture (2)"]
    parquet(tmp_path / "lists" / "train.parquet", 0, 2, label=pa.array([[0], [1]]))
    with pytest.raises(BadInput, match=r"'label' of .* holds list"):
        open_source(str(tmp_path / "lists"), label_column="label", streaming=streaming)


def with_names(path: Path, names: list[str] | None, labels: list[object], ending: str = "parquet") -> None:
    """A table of two pictures with named, or plain, labels."""
    images = pa.array([{"bytes": png(i), "path": None} for i in range(2)])
    table = pa.table({"image": images, "label": labels})
    if names is not None:
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        table = table.replace_schema_metadata(features.arrow_schema.metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        with (
            pa.ipc.new_stream(str(path), table.schema)
            if ending == "stream"
            else pa.ipc.new_file(str(path), table.schema) as file
        ):
            file.write_table(table)


@pytest.mark.parametrize("other", [(["dog", "cat"], [0, 1]), (None, [0, 1]), (None, ["cat", "dog"])])
@pytest.mark.parametrize("form", ["parquet", "streamed", "stream", "file"])
def test_files_of_a_split_with_other_classes_are_refused(tmp_path, other, form):
    ending = "parquet" if form == "streamed" else form
    suffix = "parquet" if ending == "parquet" else "arrow"
    with_names(tmp_path / f"train-0.{suffix}", ["cat", "dog"], [0, 1], ending)
    with_names(tmp_path / f"train-1.{suffix}", *other, ending)
    with pytest.raises(BadInput, match=r"Column 'label' is cat, dog in .*train-0.*write all with one schema\.$"):
        open_source(str(tmp_path), streaming=form == "streamed")


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_of_two_types(tmp_path, streaming):
    with_names(tmp_path / "files" / "train-0.parquet", None, [0, 1])
    with_names(tmp_path / "files" / "train-1.parquet", None, ["cat", "dog"])
    with pytest.raises(BadInput, match=r"is integers in .*, but words in"):
        open_source(str(tmp_path / "files"), streaming=streaming)
    with_names(tmp_path / "splits" / "train.parquet", None, ["cat", "dog"])
    with_names(tmp_path / "splits" / "val.parquet", None, [1, 0])
    with pytest.raises(BadInput, match="holds words in train, but integers in val"):
        open_source(str(tmp_path / "splits"), "val", streaming=streaming)
    with_names(tmp_path / "widths" / "train-0.parquet", None, pa.array([0, 1], pa.int32()))
    with_names(tmp_path / "widths" / "train-1.parquet", None, pa.array([2, 0], pa.int64()))
    source = open_source(str(tmp_path / "widths"), val_fraction=0, streaming=streaming)
    assert [source[i][1] for i in range(4)] == [0, 1, 2, 0]


@pytest.mark.parametrize("streaming", [False, True])
def test_hidden_tables_are_ignored(tmp_path, streaming):
    parquet(tmp_path / "train-0.parquet", 0, 4, label=pa.array([0, 1, 0, 1]))
    parquet(tmp_path / "val" / "0.parquet", 50, 1, label=pa.array([1]))
    for name in ("._train-0.parquet", "val/._0.parquet", "._more.tar", ".x.arrow", ".parquet"):
        (tmp_path / name).write_bytes(b"Mac OS X")
    train, val = (open_source(str(tmp_path), split, streaming=streaming) for split in ("train", "val"))
    assert (values(train), values(val)) == ([0, 1, 2, 3], [50])
    assert told(train) == []


@pytest.mark.parametrize("streaming", [False, True])
def test_a_named_column_without_pictures_is_one_sentence(tmp_path, streaming):
    (tmp_path / "0.png").write_bytes(png(7))
    paths = pa.array([str(tmp_path / "0.png")] * 2)
    parquet(tmp_path / "t" / "train-0.parquet", 0, 2, label=pa.array([0, 1]), id=pa.array([3, 4]), file=paths)
    parquet(tmp_path / "t" / "train-1.parquet", 2, 2, label=pa.array([0, 1]), id=pa.array([3, 4]), file=paths)
    options = {"val_fraction": 0, "streaming": streaming}
    with pytest.raises(BadInput, match=r"The column 'id' of .* holds int64, not pictures or their paths") as caught:
        open_source(str(tmp_path / "t"), image_column="id", label_column="label", **options)
    assert "\n" not in str(caught.value)
    assert values(open_source(str(tmp_path / "t"), image_column="file", label_column="label", **options)) == [7] * 4


@pytest.mark.parametrize("name", NAMES["val"])
def test_tables_know_the_same_splits(tmp_path, name):
    parquet(tmp_path / "train.parquet", 0, 4, label=pa.array([0, 1, 0, 1]))
    parquet(tmp_path / name / "0.parquet", 50, 1, label=pa.array([1]))
    parquet(tmp_path / "test.parquet", 70, 1, label=pa.array([1]))
    assert values(open_source(str(tmp_path), "val")) == [50]
    assert "split test: val is read in its place" in told(open_source(str(tmp_path), "train"))


def test_guessed_splits_of_tables_are_named(tmp_path):
    parquet(tmp_path / "part-0.parquet", 0, 4, label=pa.array([0, 1, 0, 1]))
    parquet(tmp_path / "test.parquet", 70, 1, label=pa.array([1]))
    lines = told(open_source(str(tmp_path), "val"))
    assert [line.split(":")[0] for line in lines][:2] == ["files like part-0.parquet", "split test"]


def test_parquet_by_file_name_with_class_names(tmp_path):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["big dog", "élan"])})
    for name, start in [("train-0", 0), ("train-1", 4), ("test", 100)]:
        rows = {"img": [{"bytes": png(start + i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{name}.parquet")
    train, val = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "val")
    assert train.class_names == ["big dog", "élan"]
    assert values(train) == list(range(8))
    assert values(val) == [100, 101, 102, 103]
    assert [train[i][1] for i in range(4)] == [0, 1, 0, 1]


def test_columns_found_by_type(tmp_path):
    columns = {"id": pa.array(["x"] * 4), "score": pa.array([0.5] * 4), "kind": pa.array([2, 0, 1, 2], pa.int8())}
    table = pa.table({**columns, "picture": pa.array([png(i) for i in range(4)], pa.binary())})
    pq.write_table(table, tmp_path / "train.parquet")
    table = table.slice(0, 1).set_column(2, "kind", pa.array([1], pa.int8()))
    pq.write_table(table, tmp_path / "val.parquet")
    train, val = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "val")
    assert train.class_names == val.class_names == ["0", "1", "2"]
    assert [train[i][1] for i in range(4)] == [2, 0, 1, 2]
    assert val[0][1] == 1
    words = open_source(str(tmp_path), "train", label_column="id")
    assert words.class_names == ["x"]


def test_columns_that_leave_a_choice(tmp_path):
    parquet(tmp_path / "train.parquet", 0, 3, fine=pa.array([0, 1, 2]), coarse=pa.array([0, 0, 1]))
    with pytest.raises(BadInput, match="label_column"):
        open_source(str(tmp_path), val_fraction=0)
    chosen = open_source(str(tmp_path), val_fraction=0, label_column="coarse")
    assert chosen.class_names == ["0", "1"]
    with pytest.raises(BadInput, match="no column 'nope'"):
        open_source(str(tmp_path), label_column="nope")


def test_tables_that_cannot_be_used(tmp_path):
    parquet(tmp_path / "unlabeled" / "train.parquet", 0, 2, label=pa.array([-1, -1]))
    with pytest.raises(BadInput, match="without a class"):
        open_source(str(tmp_path / "unlabeled"))
    parquet(tmp_path / "holes" / "train.parquet", 0, 2, label=pa.array([0, None]))
    with pytest.raises(BadInput, match="without a label"):
        open_source(str(tmp_path / "holes"))
    (tmp_path / "no_images").mkdir()
    pq.write_table(pa.table({"label": [0, 1]}), tmp_path / "no_images" / "train.parquet")
    with pytest.raises(BadInput, match="image column"):
        open_source(str(tmp_path / "no_images"))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(BadInput, match="Cannot read") as caught:
        open_source(str(tmp_path / "damaged"))
    assert "\n" not in str(caught.value)
    parquet(tmp_path / "split" / "test.parquet", 0, 2, label=pa.array([0, 1]))
    with pytest.raises(BadInput, match="no split 'train'"):
        open_source(str(tmp_path / "split"))
    parquet(tmp_path / "mixed" / "train.parquet", 0, 2, label=pa.array([0, 1]))
    parquet(tmp_path / "mixed" / "part.parquet", 0, 2, label=pa.array([0, 1]))
    with pytest.raises(BadInput, match=r"Cannot tell the split of .*part\.parquet"):
        open_source(str(tmp_path / "mixed"))


def test_a_damaged_row_is_named(tmp_path):
    images = pa.array([png(0), b"broken"])
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(BadInput, match=f"row 1 of {tmp_path}"):
        open_source(str(tmp_path), val_fraction=0)[1]


def test_named_split_of_tables(tmp_path):
    parquet(tmp_path / "train.parquet", 0, 2, label=pa.array([0, 1]))
    parquet(tmp_path / "extra.parquet", 50, 2, label=pa.array([1, 1]))
    with pytest.raises(BadInput, match="Cannot tell"):
        open_source(str(tmp_path))
    assert values(open_source(str(tmp_path), "val", split_name="extra")) == [50, 51]


def test_webdataset(tmp_path):
    for name, start in [("train-0000", 0), ("val-0000", 60)]:
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for i in range(6):
                for ending, content in [("png", png(start + i)), ("cls", str(i % 3).encode())]:
                    entry = tarfile.TarInfo(f"{i:04d}.{ending}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    train, val = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "val")
    assert values(train) == list(range(6))
    assert values(val) == list(range(60, 66))
    assert [train[i][1] for i in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("splits", [False, True])
def test_saved_datasets_and_arrow_files(tmp_path, splits):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    saved = datasets.DatasetDict({"train": dataset, "test": dataset.select([3])}) if splits else dataset
    saved.save_to_disk(str(tmp_path / "saved"))
    assert values(open_source(str(tmp_path / "saved"), val_fraction=0)) == [0, 1, 2, 3]
    if splits:
        assert values(open_source(str(tmp_path / "saved"), "val")) == [3]
    else:
        (tmp_path / "saved" / "state.json").unlink()
        assert values(open_source(str(tmp_path / "saved"), val_fraction=0)) == [0, 1, 2, 3]


# the hub, with its doors stubbed


def test_hub_dataset(monkeypatch):
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    dataset = datasets.Dataset.from_dict(rows, features=features)
    asked = []

    def load(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return dataset

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train", "validation", "test"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert values(open_source("some/dataset", "val")) == [0, 1, 2, 3]
    assert values(open_source("some/dataset", "train", split_name="train[:4]")) == [0, 1, 2, 3]
    assert asked == [("some/dataset", "validation"), ("some/dataset", "train[:4]")]


def test_hub_without_a_network_is_one_sentence(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(BadInput, match="Cannot load the Hugging Face dataset some/dataset") as caught:
        open_source("some/dataset")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["dataset_info", "split_names", "load"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_data_set_says_what_to_do(monkeypatch, where, status):
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: object, **__: object) -> None:
        response = SimpleNamespace(status_code=status, headers={}, request=None)
        error = GatedRepoError("Access to this\nresource is restricted.", response=response)
        if where == "dataset_info":
            raise error
        raise DatasetNotFoundError("Dataset 'some/dataset' is on the Hub.") from error

    def passes(*_: object, **__: object) -> list[str]:
        return ["train", "validation"]

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse if where == "dataset_info" else passes)
    monkeypatch.setattr(datasets, "get_dataset_split_names", refuse if where == "split_names" else passes)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    for streaming in (False, True):
        with pytest.raises(BadInput, match=r"some/dataset is gated: accept its terms at .*HF_TOKEN\.$") as caught:
            open_source("some/dataset", streaming=streaming)
        assert "\n" not in str(caught.value)
