"""What every job on disk shares: settings that must agree, pieces that are kept, and what is missing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alitok.common.errors import BadInput
from alitok.common.work import Work, difference, missing_runs, once, run_files

SETTINGS = {"seed": 1, "model": {"name": "a", "digest": "d"}}


def work(folder: Path, **more: object) -> Work:
    return Work(
        folder, {**SETTINGS, **more}, "an unfinished thing", "notes/settings.json", ("name",), {"seed": "number"}
    )


def test_pieces_of_the_same_settings_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    work(folder).begin()
    (folder / "piece").write_text("1")
    (folder / ".piece.npy.ab_12xyz.npy").write_text("torn")
    (folder / ".folder.ab_12xyz").mkdir()
    (folder / "notes" / ".settings.json.ab_12xyz.json").write_text("torn")
    work(folder, model={"name": "another name", "digest": "d"}).begin()
    assert sorted(path.name for path in folder.rglob("*")) == ["notes", "piece", "settings.json"]
    with pytest.raises(
        BadInput, match=r"work is an unfinished thing with other settings \(number 1, not 2\)\. Give the"
    ):
        work(folder, seed=2).begin()
    with pytest.raises(BadInput, match=r"\(model "):
        work(folder, model={"name": "a", "digest": "e"}).begin()
    with pytest.raises(BadInput, match=r"\(more null, not 1\)"):
        work(folder, more=1).begin()
    assert (folder / "piece").read_text() == "1"


def test_settings_without_pieces_give_way(tmp_path: Path) -> None:
    work(tmp_path).begin()
    (tmp_path / "notes" / "1.json").write_text("{}")
    work(tmp_path, seed=2).begin()
    assert (work(tmp_path).held() or {})["seed"] == 2
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["settings.json"]


@pytest.mark.parametrize("damage", ["absent", "torn", "a list"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, damage: str) -> None:
    (tmp_path / "piece").write_text("1")
    if damage != "absent":
        work(tmp_path).record.parent.mkdir()
        work(tmp_path).record.write_text("{" if damage == "torn" else "[]")
    with pytest.raises(BadInput, match="is in the way: it is not an unfinished thing"):
        work(tmp_path).begin()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file is in the way"):
        Work(tmp_path / "file", {}, "an unfinished thing").begin()
    assert (tmp_path / "piece").read_text() == "1"


def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    for name in (".git", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / ".gitignore").write_text("*")
    with pytest.raises(BadInput, match="is in the way"):
        work(tmp_path).begin()
    mine = tmp_path / "mine"
    (mine / "notes").mkdir(parents=True)
    (mine / "notes" / "settings.json").write_text('{"theme": "dark"}')
    with pytest.raises(BadInput, match="is in the way"):
        work(mine).begin()
    assert work(mine).held() == {"theme": "dark"}
    resumed = tmp_path / "resumed"
    work(resumed).begin()
    (resumed / "piece").touch()
    (resumed / ".gitignore").write_text("*")
    (resumed / ".ipynb_checkpoints").mkdir()
    work(resumed).begin()
    assert {path.name for path in resumed.iterdir()} == {"notes", "piece", ".gitignore", ".ipynb_checkpoints"}


def test_a_kill_before_the_settings_are_there_is_no_obstacle(tmp_path: Path) -> None:
    flat = Work(tmp_path, SETTINGS, "an unfinished thing")
    (tmp_path / ".settings.json.ab_12xyz.json").write_text("torn")
    flat.begin()
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_difference_names_the_first_key() -> None:
    assert difference({"a": 1, "b": {"name": "x", "c": 2}}, {"a": 1, "b": {"name": "y", "c": 2}}, ["name"]) == ""
    assert difference({"a": 1, "b": 2}, {"a": 1}) == "b 2, not null"
    assert difference({"a": "x" * 99}, {"a": 1}).endswith("..., not 1")
    assert difference(None, {}) == "unknown"


def test_runs_are_cut_where_something_is_there() -> None:
    assert missing_runs([], 5, 2) == [range(2), range(2, 4), range(4, 5)]
    assert missing_runs([0, 3], 6, 4) == [range(1, 3), range(4, 6)]
    assert missing_runs(range(6), 6, 4) == []


def test_an_index_that_was_made_twice_comes_once(tmp_path: Path) -> None:
    for start, stop in ((0, 4), (2, 4), (3, 6), (6, 8)):
        (tmp_path / f"{start:08d}-{stop:08d}.npy").touch()
    found = [(file.stem[-1], skip) for file, skip in once(run_files(tmp_path, ".npy"))]
    assert found == [("4", 0), ("6", 1), ("8", 0)]


CHILD = """
import sys, time
from pathlib import Path
from alitok.common.files import write_text
from alitok.common.work import Work, missing_runs, run_files, run_name

folder, pause = Path(sys.argv[1]), float(sys.argv[2])
work = Work(folder, {"count": 40}, "a test")
made = [index for run, _ in run_files(folder, ".txt") for index in run]
for run in work.share(lambda: missing_runs(made, 40, 3)):
    time.sleep(pause)
    write_text(folder / f"{run_name(run)}.txt", " ".join(map(str, run)))
"""


def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    def start(folder: Path, pause: float) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(pause)], env=environment)

    assert start(tmp_path / "whole", 0).wait() == 0
    wait = random.uniform(0, 1.0)
    process = start(tmp_path / "killed", 0.1)
    while not (tmp_path / "killed" / "settings.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").glob("*.txt")}
    assert start(tmp_path / "killed", 0).wait() == 0
    whole, killed = ({f.name: f.read_text() for f in (tmp_path / name).iterdir()} for name in ("whole", "killed"))
    words = [" ".join(text.split()) for name, text in sorted(killed.items()) if name != "settings.json"]
    assert " ".join(words) == " ".join(text for name, text in sorted(whole.items()) if name != "settings.json")
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items()), f"killed after {wait:.3f} s"
