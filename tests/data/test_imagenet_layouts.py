import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from alitok.common.errors import BadInput
from alitok.data import imagenet as wordnet
from alitok.data.sources import open_source

# in the devkit's order cat = 1, dog = 2, hen = 3; sorted they are hen, dog, cat
WNIDS = {"cat": "n02123045", "dog": "n02085620", "hen": "n01514859"}
SORTED = sorted(WNIDS.values())
TRUTH = ["dog", "cat", "cat", "hen", "dog"]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """ILSVRC/Data/CLS-LOC with train folders and a flat val; image number i of val has the gray value i."""
    images = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for number, wnid in enumerate(SORTED):
        (images / "train" / wnid).mkdir(parents=True)
        (images / "train" / wnid / f"{wnid}_1.JPEG").write_bytes(png(100 + number))
    (images / "val").mkdir()
    (images / "test").mkdir()
    (images / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(png(9))
    for number in range(1, len(TRUTH) + 1):
        (images / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(png(number))
    return tmp_path


def write_solution(folder: Path, truth: list[str]) -> None:
    rows = [f"ILSVRC2012_val_{number:08d},{WNIDS[word]} 1 2 3 4 " for number, word in enumerate(truth, start=1)]
    (folder / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))


def write_numbers(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [str(list(WNIDS).index(word) + 1) for word in TRUTH]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(numbers) + "\n")


def write_meta(folder: Path) -> None:
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    rows = [(number, wnid, word) for number, (word, wnid) in enumerate(WNIDS.items(), start=1)]
    savemat(folder / "meta.mat", {"synsets": np.array([*rows, (4, "n00001740", "entity")], dtype=kinds)})


def check(root: Path) -> None:
    train, val = open_source(str(root), "train"), open_source(str(root), "val")
    assert train.class_names == val.class_names
    assert [label for _, label in (train[i] for i in range(3))] == [0, 1, 2]
    assert len(train) == 3  # nothing is held out
    seen = {val[i][0].getpixel((0, 0))[0]: val[i][1] for i in range(len(val))}
    assert seen == {number: SORTED.index(WNIDS[word]) for number, word in enumerate(TRUTH, start=1)}


@pytest.mark.parametrize("below", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_solution_file(tree, below):
    write_solution(tree, TRUTH)
    check(tree / below)


@pytest.mark.parametrize("form", ["meta.mat", "map_clsloc.txt"])
def test_the_devkits_numbers_are_not_the_sorted_order(tree, form):
    folder = tree / "ILSVRC" / "devkit" / "data"
    write_numbers(folder)
    with pytest.raises(BadInput, match=r"own order.*meta\.mat"):
        open_source(str(tree), "val")
    if form == "meta.mat":
        write_meta(folder)
    else:
        lines = [f"{wnid} {number} {word}" for number, (word, wnid) in enumerate(WNIDS.items(), start=1)]
        (folder / form).write_text("\n".join(lines))
    check(tree)


def test_a_list_of_wordnet_ids(tree):
    lines = "\n".join(WNIDS[word] for word in TRUTH)
    (tree / "ILSVRC" / "Data" / "CLS-LOC" / "imagenet_2012_validation_synset_labels.txt").write_text(lines)
    check(tree)


def test_lists_that_cannot_be_used(tree):
    with pytest.raises(BadInput, match=r"LOC_val_solution\.csv.*one folder per class"):
        open_source(str(tree), "val")
    assert len(open_source(str(tree), "train")) == 3
    (tree / "LOC_val_solution.csv").write_text("x" * 200_000)  # more than a field of the csv module holds
    with pytest.raises(BadInput, match=r"Cannot read .*LOC_val_solution\.csv"):
        open_source(str(tree), "val")
    write_solution(tree, TRUTH[:-1])
    with pytest.raises(BadInput, match=r"does not name the class of ILSVRC2012_val_00000005\.JPEG"):
        open_source(str(tree), "val")
    (tree / "LOC_val_solution.csv").unlink()
    truth = tree / "ILSVRC" / "validation_ground_truth.txt"
    for content, message in [
        ("n02123045\n" * 4, "has 4 lines"),
        ("n02123045\n" * 4 + "n99999999", "'n99999999' that the training split does not have"),
        ("cat\n" * 5, "must have a WordNet id"),
        ("", "must have a WordNet id"),
        ("²\n" * 5, "must have a WordNet id"),
    ]:
        truth.write_text(content)
        with pytest.raises(BadInput, match=message):
            open_source(str(tree), "val")
    truth.write_text("1\n" * 4 + "7\n")
    write_meta(truth.parent)
    with pytest.raises(BadInput, match="has the number 7"):
        open_source(str(tree), "val")
    (truth.parent / "meta.mat").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"Cannot read the devkit's list"):
        open_source(str(tree), "val")


def test_the_list_that_is_used_is_named(tree):
    write_solution(tree, [*TRUTH, "cat", "cat"])
    notes = [str(note) for note in open_source(str(tree), "val").origin.passed_over]
    assert f"classes of validation pictures (5): taken from {tree / 'LOC_val_solution.csv'}" in notes
    assert any(note.startswith("pictures that") and "(2): they are not in" in note for note in notes)


def test_an_empty_validation_folder_is_none(tree):
    for file in (tree / "ILSVRC" / "Data" / "CLS-LOC" / "val").iterdir():
        file.unlink()
    parts = [open_source(str(tree), split, val_fraction=0.34) for split in ("train", "val")]
    assert [len(part) for part in parts] == [2, 1]


@pytest.mark.parametrize("kind", ["LOC_synset_mapping.txt", "words.txt"])
def test_names_from_a_file_beside_the_data(tree, kind):
    write_solution(tree, TRUTH)
    assert open_source(str(tree)).class_names == SORTED
    gap = "\t" if kind == "words.txt" else " "
    lines = [f"n02123045{gap}crane, tabby cat", f"n01514859{gap}hen", f"n02085620{gap}crane", f"n00000001{gap}x, y"]
    (tree / kind).write_text("\n".join(lines))
    expected = ["hen", "crane (n02085620)", "crane (n02123045)"]
    assert [open_source(str(tree), split).class_names for split in ("train", "val")] == [expected, expected]
    check(tree)


def test_imagenets_own_names_without_any_file(monkeypatch):
    ids = [f"n{number:08d}" for number in range(1000)]
    assert wordnet.readable_names(ids, []) == ids
    monkeypatch.setattr(wordnet, "IMAGENET_CLASSES", hashlib.sha256("\n".join(ids).encode()).hexdigest())
    names = wordnet.readable_names(ids, [])
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    assert len(set(names)) == 1000
    assert wordnet.readable_names(["a", *ids[1:]], []) == ["a", *ids[1:]]
