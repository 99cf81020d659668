import errno
import json
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alitok.common.errors import BadInput
from alitok.common.files import (
    UMASK,
    atomic_file,
    atomic_folder,
    check_readable_name,
    find_weights,
    hub_checkpoints,
    no_room,
    renamable,
    sha256,
    write_json,
    write_text,
)

ODD = os.fsdecode(b"caf\xe9")  # Latin-1, no UTF-8


def fail(path):
    path.write_text("half")
    raise KeyError


def test_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("done")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "done"
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    with atomic_folder(tmp_path / "folder"):
        pass
    (tmp_path / "plain folder").mkdir()
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain folder").stat().st_mode
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_the_mask_of_new_files_is_left_alone_while_threads_write(tmp_path, monkeypatch):
    def refuse(_):
        raise AssertionError("another thread's file would have the wrong mode")

    monkeypatch.setattr(os, "umask", refuse)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_text(tmp_path / f"{number}.txt", "x"), range(50)))
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~UMASK}


def test_older_file_survives_an_exception(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_file(path) as temporary:
        fail(temporary)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_folder_replaces_the_older_one_only_when_it_is_whole(tmp_path):
    path = tmp_path / "run"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(KeyError), atomic_folder(path) as temporary:
        fail(temporary / "b")
    assert [p.name for p in path.iterdir()] == ["a"]
    with atomic_folder(path) as temporary:
        (temporary / "b").write_text("2")
    assert [p.name for p in path.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_older_folder_that_cannot_be_removed_or_replaced(tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").touch()
    replace, calls = Path.replace, []

    def broken(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(BadInput, match="Cannot write"), atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["run", "old"]
    monkeypatch.setattr(Path, "replace", replace)
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda folder, ignore_errors=False: ignore_errors or remove(folder))
    with atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert [p.name for p in path.iterdir()] == ["new"]


def test_a_file_at_a_link_is_where_the_link_leads(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.npz").symlink_to(tmp_path / "disk" / "blob")
    for text in ("1", "2"):
        with atomic_file(tmp_path / "link.npz") as temporary:
            assert (temporary.parent, temporary.suffix) == (tmp_path / "disk", ".npz")
            temporary.write_text(text)
        assert (tmp_path / "disk" / "blob").read_text() == text
        assert (tmp_path / "link.npz").is_symlink()


@pytest.mark.parametrize("old", [None, "empty", "full"])
def test_a_folder_at_a_link_is_where_the_link_leads(tmp_path, old):
    target = tmp_path / "disk" / "run"
    if old is not None:
        target.mkdir(parents=True)
    if old == "full":
        (target / "old").touch()
    (tmp_path / "link").symlink_to(target)
    with atomic_folder(tmp_path / "link") as temporary:
        (temporary / "a").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in target.iterdir()] == ["a"]
    assert [path.name for path in target.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("name", [".", "below/.."])
def test_a_folder_may_be_the_current_one(tmp_path, monkeypatch, name):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    with atomic_folder(name) as temporary:
        (temporary / "a").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a"]


def test_a_path_without_links_is_kept_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert renamable("runs/a") == Path("runs/a")
    Path("here").symlink_to("there")
    assert renamable("here/a") == Path("here/a")
    assert renamable("here") == tmp_path.resolve() / "there"
    Path("round").symlink_to("round")
    with pytest.raises(BadInput, match=r"Cannot write round: .*; name another folder"):
        renamable("round")


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_place_that_cannot_be_written(tmp_path, make):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="Cannot write"), make(tmp_path / "file" / "below"):
        pass


def test_json_is_strict_and_whole(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": [1, None, "é"]})
    assert json.loads(path.read_text()) == {"a": [1, None, "é"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("inf")})
    assert json.loads(path.read_text()) == {"a": [1, None, "é"]}


def test_names_that_are_no_utf8_are_written(tmp_path):
    write_json(tmp_path / f"{ODD}.json", {"é": ODD})
    assert json.loads((tmp_path / f"{ODD}.json").read_text("utf-8")) == {"é": ODD}
    write_text(tmp_path / "a.txt", f"é {ODD}")
    assert (tmp_path / "a.txt").read_text("utf-8") == "é caf\\udce9"


def test_names_that_are_no_utf8_are_refused_where_they_could_not_be_read(tmp_path):
    check_readable_name(tmp_path / "café")
    with pytest.raises(BadInput, match="no valid UTF-8; name another folder"):
        check_readable_name(tmp_path / ODD)


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_weights_are_found_by_file_folder_or_default(tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(b"")
    for given in (path, str(tmp_path), None):
        assert find_weights("net.pth", given, tmp_path, "https://example.org") == path


def test_missing_weights_say_what_where_and_whence(tmp_path):
    with pytest.raises(BadInput) as error:
        find_weights("net.pth", None, tmp_path, "https://example.org/net.pth")
    for words in ("net.pth", str(tmp_path), "https://example.org/net.pth"):
        assert words in str(error.value)


def test_hub_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert hub_checkpoints() == tmp_path / "hub" / "checkpoints"
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(hub_checkpoints()) == "/cache/torch/hub/checkpoints"


def test_a_full_disk_is_told_from_other_faults() -> None:
    with pytest.raises(BadInput) as caught, atomic_file("/dev/full/x"):
        pass
    assert not no_room(caught.value)  # /dev/full is no folder
    assert no_room(OSError(errno.ENOSPC, "No space left on device"))
    assert not no_room(OSError(errno.ENOENT, "No such file"))
    with pytest.raises(BadInput) as caught:
        raise BadInput("Cannot write x.") from OSError(errno.ENOSPC, "No space left on device")
    assert no_room(caught.value)
