"""`alitok tokenize` by several processes, and killed: the cache is the same, file by file and byte by byte."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alitok.cli import run
from alitok.data import token_shards
from alitok.data.token_cache import TokenCache

IMAGES, SHARD = 46, 4  # twelve shards, the last of two images

# The command, slowed down by what is put in its environment, and killed where it says.
CHILD = """
import os, signal, sys, time
from alitok.cli import main
from alitok.data import token_shards
from alitok.common import files

write, replace, written = token_shards.TokenShards.write, files.Path.replace, 0
place, when = os.environ.get("KILL", " ").split(" ")

def kill(here):
    if here == place and written == int(when):
        os.kill(os.getpid(), signal.SIGKILL)

def slow_write(self, *arguments):
    global written
    time.sleep(float(os.environ.get("PAUSE", 0)))
    kill("before")
    write(self, *arguments)
    written += 1

def killing_replace(self, target):
    kill("rows" if self.suffix == ".arrow" else "record" if self.suffix == ".json" else "end")
    result = replace(self, target)
    if self.suffix == ".partial" and place == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

token_shards.TokenShards.write, files.Path.replace = slow_write, killing_replace
main(sys.argv[1:])
"""


def words(artifacts: Path, out: Path) -> list[str]:
    places = ["--tokenizer", str(artifacts / "tokenizer"), "--data", "shapes", "--out", str(out)]
    return ["tokenize", *places, "--count", str(IMAGES), "--images-per-shard", str(SHARD), "--batch", "30"]


def start(artifacts: Path, out: Path, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, *words(artifacts, out)]
    everything = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=everything, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def start_group(artifacts: Path, out: Path, world: int, **environment: str) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment}
    return [start(artifacts, out, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(world)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the cache that one process makes without an interruption."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    run(words(artifacts, out))
    assert len(list(out.glob("data-*-of-00012.arrow"))) == 12
    assert len(TokenCache(out)) == IMAGES
    return content(out)


def test_killed_while_shards_are_written(artifacts: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "cache"
    rng = random.Random()
    wait = rng.uniform(0, 0.6)
    process = start(artifacts, out, PAUSE="0.1")
    while not (tmp_path / "cache.partial" / token_shards.PROGRESS / "job.json").exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache.partial").glob("data-*.arrow")}
    times = list(before.values())
    run(words(artifacts, out))
    assert content(out) == whole, f"killed after {wait:.3f} s"
    after = [(out / path.name).stat().st_mtime_ns for path in before]
    assert sum(a == b for a, b in zip(times, after, strict=True)) >= len(times) - 1  # kept, not made again
    assert not (tmp_path / "cache.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["before 0", "before 5", "rows 0", "rows 11", "record 3", "end 12", "after 12"])
def test_killed_at_every_kind_of_moment(artifacts: Path, tmp_path: Path, whole: dict[str, bytes], place: str) -> None:
    out = tmp_path / "cache"
    assert start(artifacts, out, KILL=place).wait() == -signal.SIGKILL
    assert out.exists() == place.startswith("after")
    run(words(artifacts, out))
    assert content(out) == whole


@pytest.mark.slow
def test_a_shard_that_was_cut_off_is_made_again(artifacts: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "cache"
    process = start(artifacts, out, KILL="before 8")
    assert process.wait() == -signal.SIGKILL
    shards = sorted((tmp_path / "cache.partial").glob("data-*.arrow"))
    assert len(shards) == 8
    shards[2].write_bytes(shards[2].read_bytes()[:1000])
    shards[4].write_bytes(b"")
    shards[5].unlink()
    (tmp_path / "cache.partial" / ".data-00003-of-00012.arrow.ab_12xyz.arrow").write_bytes(b"half")
    run(words(artifacts, out))
    assert content(out) == whole


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_make_the_same_cache(
    artifacts: Path, tmp_path: Path, whole: dict[str, bytes], world: int
) -> None:
    out = tmp_path / "cache"
    processes = start_group(artifacts, out, world)
    assert [process.wait() for process in processes] == [0] * world
    assert content(out) == whole


@pytest.mark.slow
def test_a_process_of_several_is_killed_and_one_goes_on_alone(
    artifacts: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "cache"
    processes = start_group(artifacts, out, 2, PAUSE="0.1", KILL="before 2")
    assert all(process.wait() != 0 for process in processes)
    assert 2 <= len(list((tmp_path / "cache.partial").glob("data-*.arrow"))) < 12
    run(words(artifacts, out))
    assert content(out) == whole


@pytest.mark.slow
def test_bad_input_ends_every_process(artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "diary.txt").write_text("dear diary")
    processes = start_group(artifacts, tmp_path / "cache", 2)
    assert [process.wait() for process in processes] == [2, 2]
    assert all(b"Traceback" not in process.stderr.read() for process in processes if process.stderr)
