"""Checkpoint files: whole or absent, damage is seen, nothing pickled is read."""

import errno
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.common.tensors import _Watched
from alitok.training.checkpoint import AtomicCheckpointIO, checkpoints, is_whole, newest, read_checkpoint

BIG = {"state_dict": {"weight": torch.arange(500_000.0)}, "global_step": 3}


def save(path: Path, content: Any = BIG) -> Path:
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def flip(path: Path) -> None:
    """Changes one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "step=3.ckpt")
    read = read_checkpoint(path)
    assert read["global_step"] == 3
    assert torch.equal(read["state_dict"]["weight"], BIG["state_dict"]["weight"])
    assert is_whole(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["step=3.ckpt"]


def test_a_full_disk_is_one_sentence_and_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "step=3.ckpt", {"global_step": 2})
    written = 0
    original = _Watched.write

    def write(self: _Watched, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > 1_000_000:
            self.error = OSError(errno.ENOSPC, "No space left on device")
            raise self.error
        return original(self, data)

    monkeypatch.setattr(_Watched, "write", write)
    with pytest.raises(BadInput, match=r"Cannot write .*step=3.ckpt: No space left on device"):
        save(path)
    assert read_checkpoint(path) == {"global_step": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["step=3.ckpt"]


def test_a_real_limit_of_the_system_too(tmp_path: Path) -> None:
    path = save(tmp_path / "step=3.ckpt", {"global_step": 2})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(BadInput, match=r"Cannot write .*step=3.ckpt: File too large"):
            save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(path) == {"global_step": 2}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="Cannot write"):
        save(tmp_path / "file" / "step=3.ckpt")


def test_damage_is_seen_and_passed_over(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])
    for step in (2, 10, 9, 11):
        save(tmp_path / f"step={step}.ckpt")
    (tmp_path / ".step=12.ckpt.abc.ckpt").write_bytes(b"unfinished")
    assert [path.name for path in checkpoints(tmp_path)] == [f"step={step}.ckpt" for step in (11, 10, 9, 2)]
    cut = tmp_path / "step=11.ckpt"
    cut.write_bytes(cut.read_bytes()[:-1000])
    flip(tmp_path / "step=10.ckpt")
    assert newest(tmp_path) == (tmp_path / "step=9.ckpt", [cut, tmp_path / "step=10.ckpt"])
    for path in checkpoints(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(BadInput, match=r"All checkpoints in .* are damaged"):
        newest(tmp_path)


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "step=1.ckpt", {"callbacks": pickle.Pickler})
    with pytest.raises(BadInput, match="cannot be read"):
        read_checkpoint(tmp_path / "step=1.ckpt")
    with pytest.raises(BadInput, match="There is no checkpoint"):
        read_checkpoint(tmp_path / "step=2.ckpt")
