"""`alitok describe --data`: what a data spec is taken for, in every layout."""

import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alitok import cli
from alitok.common.errors import BadInput

KEYS = ["layout", "splits", "classes", "columns", "passed_over", "tried", "cannot_be_read"]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()


def png(value: int, size: tuple[int, int] = (12, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def class_folders(root: Path, each: int, names: tuple[str, ...] = ("a", "b")) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(each):
            (root / name / f"{i}.png").write_bytes(png(10 * i))


def ilsvrc(root: Path) -> None:
    below = root / "ILSVRC" / "Data" / "CLS-LOC"
    class_folders(below / "train", 2, ("n02085620", "n02123045"))
    (below / "val").mkdir()
    (below / "val" / "ILSVRC2012_val_00000001.png").write_bytes(png(1))
    (root / "LOC_val_solution.csv").write_text("ImageId,Prediction\nILSVRC2012_val_00000001,n02123045 1 2 3 4\n")


def table(root: Path) -> None:
    images = pa.array([{"bytes": png(i), "path": None} for i in range(4)])
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"img": images, "id": range(4), "label": ["cat", "dog"] * 2}), root / "train.parquet")
    pq.write_table(pa.table({"img": images, "id": range(4), "label": ["cat", "dog"] * 2}), root / "test.parquet")


def tar(root: Path) -> None:
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}-0.tar", "w") as archive:
            for i in range(4):
                for ending, content in (("png", png(i)), ("cls", str(i % 2).encode())):
                    entry = tarfile.TarInfo(f"{i:04d}.{ending}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))


def saved(root: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": dataset, "test": dataset.select([3])}).save_to_disk(str(root))


def splits(root: Path) -> None:
    for name, count in (("train", 4), ("valid", 2), ("test", 3)):
        class_folders(root / name, count)


TEST = "taken for validation, because there is no validation, val or valid"
WORDNET = {"n02085620": 2, "n02123045": 2}
LAYOUTS: dict[str, tuple[Any, str, dict[str, int], dict[str, int], dict[str, str] | None, list[str]]] = {
    "class folders": (
        lambda root: class_folders(root, 10),
        "class folders",
        {"train": 19, "val": 1},
        {"a": 9, "b": 10},
        None,
        ["images"],
    ),
    "splits": (
        splits,
        "class folders in train/ and valid/",
        {"train": 8, "val": 4},
        {"a": 4, "b": 4},
        None,
        ["folder test"],
    ),
    "ilsvrc": (
        ilsvrc,
        "the ILSVRC tree ILSVRC/Data/CLS-LOC: class folders in train/; pictures in val/ with a list of their classes",
        {"train": 4, "val": 1},
        WORDNET,
        None,
        ["names of classes", "classes of validation pictures", "classes without a picture"],
    ),
    "table": (
        table,
        ".parquet files",
        {"train": 4, "val": 4},
        {"cat": 2, "dog": 2},
        {"image": "img", "label": "label"},
        ["split test"],
    ),
    "tar": (
        tar,
        ".tar files",
        {"train": 4, "val": 4},
        {"0": 2, "1": 2},
        {"image": "png", "label": "cls"},
        [],
    ),
    "saved": (
        saved,
        "saved dataset",
        {"train": 4, "val": 1},
        {"a": 2, "b": 2},
        {"image": "image", "label": "label"},
        ["split test", "classes without a picture"],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, layout, counts, classes, columns, passed_over = LAYOUTS[name]
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    cli.run(["describe", "--data", str(root), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert list(record) == KEYS
    assert [record[key] for key in KEYS[:4]] == [layout, counts, classes, columns]
    assert [note["what"] for note in record["passed_over"]] == passed_over
    assert all(list(note) == ["what", "count", "why"] and note["count"] > 0 for note in record["passed_over"])
    cli.run(["describe", "--data", str(root)])
    text = capsys.readouterr().out
    for word in (*classes, *passed_over[:1], "layout", f"{counts['train']}"):
        assert word in text


def test_shapes_and_a_picture_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["describe", "--data", "shapes", "--picture", str(tmp_path / "shapes.png"), "--size", "64", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert (record["layout"], record["splits"]) == ("drawn shapes", {"train": 20_000, "val": 2_000})
    assert record["classes"]["circle"] == 2_000
    assert (record["columns"], record["passed_over"]) == (None, [])
    with Image.open(tmp_path / "shapes.png") as image:
        assert image.size == (8 * 130 + 2, 4 * 130 + 2 + 130 // 4)


def test_the_picture_leaves_out_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(tmp_path / "data" / "train", 3)
    class_folders(tmp_path / "data" / "val", 1)
    (tmp_path / "data" / "train" / "a" / "0.png").write_bytes(b"none")
    cli.run(["describe", "--data", str(tmp_path / "data"), "--picture", str(tmp_path / "grid.png"), "--size", "64"])
    said = capsys.readouterr()
    assert "not shown: Cannot read the image" in said.err
    assert f"Wrote {tmp_path / 'grid.png'}." in said.err
    assert re.search(r"cannot be read +│ +1 +│ +of 8 tried", said.out)
    cli.run(["describe", "--data", str(tmp_path / "data"), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["tried"] == 8
    (sentence,) = record["cannot_be_read"]
    assert sentence.startswith(f"Cannot read the image {tmp_path / 'data' / 'train' / 'a' / '0.png'}: ")
    with Image.open(tmp_path / "grid.png") as image:
        rows = [
            [image.getpixel((2 + 130 * column + 64, 32 + 2 + 130 * row + 64))[0] for column in (0, 1)]
            for row in range(4)
        ]
    assert rows == [[10, 0], [20, 10], [255, 20], [255, 255]]


def test_a_hub_data_set_read_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from types import SimpleNamespace

    table(tmp_path / "files")
    files = {name: [f"file://{tmp_path}/files/{name}.parquet"] for name in ("train", "test")}
    builder = SimpleNamespace(config=SimpleNamespace(data_files=files))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train", "test"])
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: builder)
    cli.run(["describe", "--data", "some/dataset", "--streaming", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["layout"] == "Hugging Face dataset, streamed"
    assert (record["splits"], record["classes"]) == ({"train": 4, "val": 4}, {"cat": 2, "dog": 2})
    assert record["passed_over"] == [{"what": "split test", "count": 1, "why": TEST}]


def test_names_that_are_no_utf8_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(tmp_path / "data", 10, ("a", "b", "caf\udce9"))
    cli.run(["describe", "--data", str(tmp_path / "data")])
    assert "caf\\udce9" in capsys.readouterr().out
    cli.run(["describe", "--data", str(tmp_path / "data"), "--json"])
    assert "caf\udce9" in json.loads(capsys.readouterr().out)["classes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "needs -c/--config FILE for a run, or --data SPEC"),
        ("--data shapes -c a.yaml", "--config describes a run and --data a data set"),
        ("--data shapes --model.width 3", "--model.width describes a run and --data"),
        ("--data shapes --hardware H100", "--hardware describes a run"),
        ("--data shapes --images 4", "--images describes a run"),
        ("--data shapes --size 0", "--size must be at least 1"),
        ("-c a.yaml --picture a.png", "--picture belongs to --data SPEC"),
        ("-c a.yaml --label-column x", "--label-column belongs to --data SPEC"),
        ("--data nowhere", "Data folder nowhere does not exist"),
    ],
)
def test_what_does_not_go_together(words: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        cli.run(["describe", *words.split()])


def test_lightning_is_not_imported(tmp_path: Path) -> None:
    words = ["describe", "--data", "shapes", "--picture", str(tmp_path / "shapes.png")]
    code = f"import sys; from alitok.cli import run; run({words}); sys.exit('lightning' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
