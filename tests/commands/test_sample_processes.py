"""`alitok sample` on one, two and three processes, and after a kill: the same set, exactly the count."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp

from alitok.cli import run
from alitok.sampling import sets as sample_set
from alitok.studies.processes import free_port


def words(artifacts: Path, out: Path, batch: int, count: int = 11) -> list[str]:
    given = ["sample", "--generator", artifacts / "generator", "--tokenizer", artifacts / "tokenizer"]
    return [str(word) for word in [*given, "--count", count, "--out", out, "--batch", batch]]


def work(rank: int, port: int, processes: int, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    run(arguments)


def twice(rank: int, ports: tuple[int, int], batch_given: list[str], not_given: list[str]) -> None:
    """Two processes; of the second set they choose the batch, on devices that hold 4 and 3 images."""
    work(rank, ports[0], 2, batch_given)
    sample_set.largest_batch = lambda *_: 4 - rank
    work(rank, ports[1], 2, not_given)


def pixels(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["arr_0"]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for the rounding of matrix products, which a truncated value may turn into one gray level."""
    return a.shape == b.shape and int(np.abs(a.astype(int) - b).max()) <= 1


def test_any_number_of_processes_draws_the_same_set(artifacts: Path, tmp_path: Path) -> None:
    run(words(artifacts, tmp_path / "one.npz", 11))
    whole = pixels(tmp_path / "one.npz")
    assert len(np.unique(whole.reshape(11, -1), axis=0)) == 11
    sets = words(artifacts, tmp_path / "two.npz", 3), words(artifacts, tmp_path / "memory.npz", 1)[:-2]
    mp.spawn(twice, ((free_port(), free_port()), *sets), nprocs=2)
    for name in ("two", "memory"):
        assert same(pixels(tmp_path / f"{name}.npz"), whole)
    mp.spawn(work, (free_port(), 3, words(artifacts, tmp_path / "three", 2)), nprocs=3)
    names = sorted(path.name for path in (tmp_path / "three").iterdir())
    assert names == [*(f"{index:06d}.png" for index in range(11)), "samples.json"]
    told = [json.loads(file.read_text()) for file in (tmp_path / "one.json", tmp_path / "three" / "samples.json")]
    assert [each.pop("drawn_with") for each in told] == [[{"batch": batch, "device": "cpu"}] for batch in (11, 2)]
    assert told[0] == told[1]
    left = [f"{name}.{suffix}" for name in ("memory", "one", "two") for suffix in ("json", "npz")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*left, "three"])


def test_a_killed_command_goes_on(artifacts: Path, tmp_path: Path) -> None:
    count = 3000
    arguments = words(artifacts, tmp_path / "killed.npz", 2, count)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "alitok", *arguments], env=environment, stdout=subprocess.DEVNULL)
    partial = tmp_path / ".killed.npz.partial"
    deadline = time.monotonic() + 120
    while len(list(partial.glob("0*.npy"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.npz").exists()
    kept = {file.name: file.stat().st_mtime_ns for file in partial.glob("0*.npy")}
    assert 3 <= len(kept) < count // 2
    before = time.time_ns()
    run(words(artifacts, tmp_path / "killed.npz", 500, count))
    assert max(kept.values()) < before
    found = pixels(tmp_path / "killed.npz")
    assert len(found) == count
    run(words(artifacts, tmp_path / "whole.npz", 1000, count))
    assert same(found, pixels(tmp_path / "whole.npz"))
