import io
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alitok.common.errors import BadInput
from alitok.data.folders import FolderSource
from alitok.data.found import Found
from alitok.data.sources import NoValidation, describe_source, open_source
from alitok.data.splits import NAMES


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def class_folders(root: Path, names: list[str], each: int, first: int = 0) -> None:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(each):
            (root / name / f"{i:03d}.png").write_bytes(png(first + number * each + i))


def values(source) -> list[int]:
    return [source[i][0].getpixel((0, 0))[0] for i in range(len(source))]


def parquet(path: Path, start: int, count: int, **columns: pa.Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array([{"bytes": png(start + i), "path": None} for i in range(count)])
    pq.write_table(pa.table({"img": images, **columns}), path)


# folders


def test_folder_with_splits_keeps_odd_class_names_and_sorted_order(tmp_path):
    names = ["zèbre gris", "Äpfel", "a cat"]
    class_folders(tmp_path / "train", names, 2)
    class_folders(tmp_path / "validation", names[:2], 1, first=100)
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "a cat" / "notes.txt").write_text("x")
    train, val = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "val")
    assert train.class_names == val.class_names == sorted(names)
    assert [train[i][1] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert values(train) == [4, 5, 0, 1, 2, 3]
    assert [(val[i][1]) for i in range(2)] == [1, 2]
    assert train[0][0].mode == "RGB"
    with pytest.raises(IndexError):
        train[6]


def test_a_seeded_share_is_held_out_and_said_so(tmp_path):
    class_folders(tmp_path, ["a", "b"], 20)
    train, val = (open_source(str(tmp_path), split, val_fraction=0.25) for split in ("train", "val"))
    assert (len(train), len(val)) == (30, 10)
    assert sorted(values(train) + values(val)) == list(range(40))
    assert "held out" in train.description
    assert "held out" in val.description
    assert values(open_source(str(tmp_path), "val", val_fraction=0.25)) == values(val)
    assert values(open_source(str(tmp_path), "val", val_fraction=0.25, seed=1)) != values(val)
    assert len(open_source(str(tmp_path), "train", val_fraction=0)) == 40
    with pytest.raises(NoValidation, match="no validation split"):
        open_source(str(tmp_path), "val", val_fraction=0)


def test_count_takes_a_seeded_part(tmp_path):
    class_folders(tmp_path / "train", ["a", "b"], 20)
    class_folders(tmp_path / "val", ["a", "b"], 1)
    part = open_source(str(tmp_path), "train", count=10)
    assert len(part) == 10
    assert values(part) == sorted(values(part))
    assert {part[i][1] for i in range(10)} == {0, 1}
    assert len(open_source(str(tmp_path), "train", count=1000)) == 40


def test_the_ilsvrc_tree_and_folders_below_classes(tmp_path):
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    class_folders(root / "train", ["n01", "n02"], 1)
    (root / "train" / "n02" / "images").mkdir()
    (root / "train" / "n02" / "images" / "more.PNG").write_bytes(png(50))
    (root / "val").mkdir()
    (root / "val" / "ILSVRC2012_val_00000001.png").write_bytes(png(1))
    (root / "test").mkdir()
    assert values(open_source(str(tmp_path), "train")) == [0, 1, 50]
    with pytest.raises(BadInput, match="one folder per class"):
        open_source(str(tmp_path), "val")


def test_a_class_may_be_called_test(tmp_path):
    class_folders(tmp_path, ["quiz", "test"], 10)
    assert open_source(str(tmp_path), "train").class_names == ["quiz", "test"]


def test_named_split_of_a_folder(tmp_path):
    class_folders(tmp_path / "train", ["a", "b"], 1)
    class_folders(tmp_path / "extra", ["b"], 3, first=20)
    extra = open_source(str(tmp_path), "val", split_name="extra")
    assert values(extra) == [20, 21, 22]
    assert extra[0][1] == 1
    with pytest.raises(BadInput, match="no folder 'nope'"):
        open_source(str(tmp_path), "val", split_name="nope")


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no class folders"):
        open_source(str(tmp_path / "empty"))
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(png(0))
    with pytest.raises(BadInput, match="no class folders"):
        open_source(str(tmp_path / "flat"))
    (tmp_path / "flat2" / "train").mkdir(parents=True)
    (tmp_path / "flat2" / "train" / "a.png").write_bytes(png(0))
    with pytest.raises(BadInput, match="train has no class folders"):
        open_source(str(tmp_path / "flat2"))
    class_folders(tmp_path / "hole", ["a", "b"], 1)
    (tmp_path / "hole" / "c").mkdir()
    with pytest.raises(BadInput, match="hole/c has no images"):
        open_source(str(tmp_path / "hole"))
    class_folders(tmp_path / "odd" / "train", ["a"], 1)
    class_folders(tmp_path / "odd" / "val", ["x"], 1)
    with pytest.raises(BadInput, match="'x' that the training split does not have"):
        open_source(str(tmp_path / "odd"), "val")
    class_folders(tmp_path / "one", ["a"], 1)
    with pytest.raises(BadInput, match="too few"):
        open_source(str(tmp_path / "one"))


def test_a_damaged_image_is_named(tmp_path):
    class_folders(tmp_path, ["a", "b"], 2)
    (tmp_path / "b" / "001.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"b/001\.png"):
        FolderSource(tmp_path)[3]


@pytest.mark.parametrize("spec", ["data/imagenet", "nowhere", "./x/y", "/no/such/place", "tests/no_such"])
def test_missing_folder_names_the_variable(spec, tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="DATA="):
        open_source(spec)


@pytest.mark.parametrize("spec", ["~no-such-user/x", "x" * 5000, "a" * 300 + "/x"])
def test_paths_that_cannot_be(spec):
    with pytest.raises(BadInput, match=r"Cannot look for the data '|does not exist"):
        open_source(spec)


def test_wrong_arguments():
    with pytest.raises(BadInput, match="'train' or 'val'"):
        open_source("shapes", "test")
    with pytest.raises(BadInput, match="at least 1"):
        open_source("shapes", count=0)


def told(source) -> list[str]:
    return list(map(str, Found("spec", {"train": source}).passed_over))


@pytest.mark.parametrize("name", [name for role in ("val", "test") for name in NAMES[role]])
@pytest.mark.parametrize("spelled", [str.lower, str.capitalize])
def test_every_validation_folder_is_found(tmp_path, name, spelled):
    class_folders(tmp_path / "train", ["a", "b"], 2)
    class_folders(tmp_path / spelled(name), ["b"], 3, first=50)
    val = open_source(str(tmp_path), "val")
    assert values(val) == [50, 51, 52]
    assert val[0][1] == 1
    assert len(open_source(str(tmp_path), "train")) == 4
    assert any("taken for validation" in line for line in told(val)) == (name in NAMES["test"])


@pytest.mark.parametrize("name", [name.capitalize() for name in NAMES["train"]])
def test_other_spellings_of_train(tmp_path, name):
    class_folders(tmp_path / name, ["a", "b"], 2)
    class_folders(tmp_path / "Val", ["a"], 1, first=50)
    assert values(open_source(str(tmp_path), "train")) == [0, 1, 2, 3]
    assert values(open_source(str(tmp_path), "val")) == [50]
    class_folders(tmp_path / "car" / "photos", [""], 1)  # among other folders it is a class
    assert open_source(str(tmp_path), "train").class_names == sorted(["Val", name, "car"])


def test_valid_goes_before_test_and_what_is_not_read_is_named(tmp_path):
    for name in ("train", "valid", "test", "extra"):
        class_folders(tmp_path / name, ["a", "b"], 2, first=len(name) * 9)
    for split in ("train", "val"):
        source = open_source(str(tmp_path), split)
        assert source.origin.layout == "class folders in train/ and valid/"
        assert [line.split(":")[0] for line in told(source)] == ["folder extra", "folder test"]
    assert values(source) == [45, 46, 47, 48]
    extra = open_source(str(tmp_path), "val", split_name="extra")
    assert [line.split(":")[0] for line in told(extra)] == ["folder test"]
    (tmp_path / "valid").rename(tmp_path / "old")
    named = open_source(str(tmp_path), "val", split_name="test")
    assert [line.split(":")[0] for line in told(named)] == ["folder extra", "folder old"]


def test_folders_that_are_guessed_or_passed_over_are_named(tmp_path):
    class_folders(tmp_path, ["quiz", "test"], 10)
    (tmp_path / "loose.png").write_bytes(png(0))
    (tmp_path / "quiz" / "notes.txt").touch()
    source = open_source(str(tmp_path))
    lines = " | ".join(told(source))
    for words in (
        "folders test: taken for classes",
        "pictures directly in",
        "[.txt 1]",
        "images: 1 of 20 images held out",
    ):
        assert words in lines
    assert "held out" not in describe_source(source).removeprefix(source.description)
    assert "taken for classes" in describe_source(source)
    class_folders(tmp_path / "nested" / "PetImages", ["Cat", "Dog"], 5)
    assert "if Cat, Dog below it are the classes" in " ".join(told(open_source(str(tmp_path / "nested"))))


def test_a_class_that_is_held_out_whole_is_named(tmp_path):
    class_folders(tmp_path, list("abcdef"), 1)
    lines = told(open_source(str(tmp_path), "train", val_fraction=0.3))
    assert any(line.startswith("classes without a picture to train on (2)") for line in lines)
    assert any(line.startswith("classes of one picture (6)") for line in lines)


@pytest.mark.parametrize("kind", ["class folder", "class", "flat"])
def test_links_in_class_folders_and_validation(tmp_path, kind):
    class_folders(tmp_path / "train", ["n00000001", "n00000002"], 1)
    more = tmp_path / "more"
    more.mkdir()
    for number in (1, 2):
        (more / f"ILSVRC2012_val_{number:08d}.png").write_bytes(png(80 + number))
    if kind == "flat":
        (tmp_path / "val").symlink_to("more")
        (tmp_path / "validation_ground_truth.txt").write_text("n00000001\nn00000002")
        assert values(open_source(str(tmp_path), "val")) == [81, 82]
        return
    name = "n00000002/more" if kind == "class folder" else "n00000003"
    (tmp_path / "train" / name).symlink_to(os.path.relpath(more, (tmp_path / "train" / name).parent))
    (tmp_path / "train" / "n00000001" / "loop").symlink_to("../..")
    source = open_source(str(tmp_path / "train"), val_fraction=0)
    assert values(source) == [0, 1, 81, 82]
    assert "links to a folder above: following them would never end" in told(source)


@pytest.mark.parametrize("place", ["", "data", "train", "Val", "validation", "test"])
@pytest.mark.parametrize("ending", ["tar", "parquet", "arrow"])
@pytest.mark.parametrize("splits", [True, False])
def test_class_folders_go_before_what_lies_beside_them(tmp_path, place, ending, splits):
    class_folders(tmp_path / ("train" if splits else ""), ["a", "b"], 3)
    (tmp_path / place).mkdir(exist_ok=True)
    if not splits and place:
        (tmp_path / place / "0.png").write_bytes(png(90))
    (tmp_path / place / f"n01440764.{ending}").write_bytes(b"no table")
    source = open_source(str(tmp_path), val_fraction=0)
    assert set(source.class_names) >= {"a", "b"}
    assert f"files ending in .{ending}: class folders are read in their place" in told(source)
    with pytest.raises(BadInput, match=r"Cannot read|parquet files|no split"):  # asked for, they are read
        open_source(str(tmp_path), streaming=True)


def test_tables_go_before_one_folder_of_pictures(tmp_path):
    parquet(tmp_path / "data" / "train.parquet", 0, 4, label=pa.array([0, 1, 0, 1]))
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "logo.png").write_bytes(png(99))
    (tmp_path / "more.tar").touch()
    source = open_source(str(tmp_path), val_fraction=0)
    assert values(source) == [0, 1, 2, 3]
    assert [line.split(":")[0] for line in told(source)] == ["files ending in .tar", "folder assets"]


def test_options_that_do_nothing_are_named():
    lines = told(open_source("shapes", count=4, image_column="x", streaming=True))
    assert lines == ["image_column x: only tables have columns", "streaming: shapes are drawn, not read"]
    with pytest.raises(BadInput, match="shapes has the splits train and val, no 'test'"):
        open_source("shapes", "val", split_name="test")


# tables


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
    parquet(tmp_path / "unlabelled" / "train.parquet", 0, 2, label=pa.array([-1, -1]))
    with pytest.raises(BadInput, match="without a class"):
        open_source(str(tmp_path / "unlabelled"))
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
