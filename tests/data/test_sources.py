import os

import datasets
import pyarrow as pa
import pytest
from made_sources import class_folders, parquet, png, told, values

from alitok.common.errors import BadInput
from alitok.data.folders import FolderSource
from alitok.data.found import Origin
from alitok.data.sources import (
    NoValidation,
    describe_source,
    held_out_in_training,
    hold_out,
    limit,
    open_source,
    trained_on,
)
from alitok.data.splits import NAMES


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()


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


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("count", [None, 7])
@pytest.mark.parametrize("number", [0, 1, 3, 1234])
def test_what_was_held_out_in_training_is_read_from_the_description(number, count, streaming):
    class Many(list):
        name, class_names, origin = "data/my pets", ["a"], Origin("made up")
        description = "2,000 images of 1 classes in data/my pets" + " (streamed)" * streaming

    source = hold_out(Many(range(2000)), "train", number / 2000, 0)
    source = source if count is None else limit(source, count, 0)
    for card in (f"train: {source.description}", f"train: {source.description}; validation: left out"):
        then = held_out_in_training(card, "data/my pets")
        assert then == ((number, 2000) if number else (0, 0))
        assert len(hold_out(Many(range(2000)), "train", then.share, 0)) == 2000 - number
        for other in ("data/my", "my pets", "data/my pets/train", "elsewhere"):
            assert held_out_in_training(card, other) is None
    assert (trained_on(then, 2000, number or 100) is None) == (number > 0)
    assert trained_on(None, 2000, 100) is None


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
