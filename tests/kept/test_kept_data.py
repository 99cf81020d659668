"""Caches, pairs, sample sets and records of 0.1: they are read and made alike, and unfinished ones are finished."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from kept_files import FILES, alitok_run, differences, kept, lay_out, read_json
from PIL import Image

DATA: dict[str, Any] = read_json("data.json")
CLASSIFIER = "classifier"
ONE_LEVEL = 1  # of a byte: where a pixel lies between two, processors differ
UNFINISHED = [name for name in DATA if "partial" in DATA[name]]
FINISHED = [name for name in DATA if DATA[name]["words"][0] in ("tokenize", "pairs", "sample")]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def content(path: Path) -> dict[str, Any]:
    """Arrays and JSON values of an output, by name."""
    if path.suffix == ".json":
        return {"json": json.loads(path.read_text("utf-8"))}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    if (path / "state.json").is_file():
        rows = datasets.load_from_disk(str(path)).with_format("numpy")[:]
        return {"label": rows["label"], "tokens": np.asarray(rows["tokens"]), **content(path / "alitok.json")}
    pictures = {file.name: np.asarray(Image.open(file)) for file in sorted(path.glob("*.png"))}
    return pictures | {file.name: content(file) for file in path.glob("*.json")}


def check_alike(name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    assert now.keys() == before.keys()
    for key, value in before.items():
        if not isinstance(value, np.ndarray):
            assert not differences(without_version(value), without_version(now[key])), f"{name}: {key}"
        elif value.dtype == np.uint8 and value.ndim > 2:
            assert np.abs(value.astype(int) - now[key].astype(int)).max() <= ONE_LEVEL, f"{name}: {key}"
        elif value.dtype.kind == "f":
            np.testing.assert_allclose(now[key], value, rtol=1e-4, atol=1e-6, err_msg=f"{name}: {key}")
        elif value.dtype.kind == "U" and str(value).startswith("{"):
            assert without_version(json.loads(str(now[key]))) == without_version(json.loads(str(value))), (
                f"{name}: {key}"
            )
        else:
            np.testing.assert_array_equal(now[key], value, err_msg=f"{name}: {key}")


# Keys of a record that 0.1 did not have; a program that reads the others does not see them.
LATER = {"fid_mean", "fid_covariance", "chd", "codes", "rfid_mean", "rfid_covariance"}


def without_version(value: Any) -> Any:
    """Without later keys and what depends on package or machine: its version, the batch and device that drew a set."""
    if not isinstance(value, dict):
        return value
    left_out = {"alitok", "drawn_with", *LATER}
    return {key: without_version(item) for key, item in value.items() if key not in left_out}


def check_made(name: str, folder: Path) -> None:
    for made in DATA[name]["makes"]:
        check_alike(made, content(kept("data", made, FILES / made)), content(folder / made))


@pytest.mark.parametrize("name", [name for name in DATA if name != CLASSIFIER])
def test_the_same_command_makes_the_same(name: str, tmp_path: Path) -> None:
    lay_out(tmp_path, *DATA[name]["needs"])
    alitok_run(DATA[name]["words"])
    check_made(name, tmp_path)


@pytest.mark.parametrize("name", FINISHED)
def test_what_is_finished_is_known_as_such(name: str, tmp_path: Path) -> None:
    lay_out(tmp_path, *DATA[name]["needs"], *DATA[name]["makes"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    alitok_run(DATA[name]["words"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def lay_out_unfinished(name: str, folder: Path) -> Path:
    lay_out(folder, *DATA[name]["needs"])
    partial = DATA[name]["partial"]
    stored = f"unfinished/{partial.removeprefix('.')}"  # not hidden there
    lay_out(folder, stored)
    return (folder / stored).rename(folder / partial)


@pytest.mark.parametrize("name", UNFINISHED)
def test_what_is_unfinished_is_finished(name: str, tmp_path: Path) -> None:
    partial = lay_out_unfinished(name, tmp_path)
    pieces = {path.name: path.stat().st_ino for path in partial.glob("*[0-9]*") if path.is_file()}
    assert pieces
    alitok_run(DATA[name]["words"])
    check_made(name, tmp_path)
    assert not partial.exists()
    if (out := tmp_path / name).is_dir():  # the pieces that were there are still those
        assert {path.name: path.stat().st_ino for path in out.iterdir() if path.name in pieces} == pieces


def test_images_of_an_unfinished_array_are_not_drawn_again(tmp_path: Path) -> None:
    piece = lay_out_unfinished("samples.npz", tmp_path) / "00000000-00000004.npy"
    other = 255 - np.load(piece)
    np.save(piece, other)
    alitok_run(DATA["samples.npz"]["words"])
    np.testing.assert_array_equal(content(tmp_path / "samples.npz")["arr_0"][:4], other)
