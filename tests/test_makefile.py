"""What a make target refuses before it starts anything."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not of `make test`
    return subprocess.run(["make", *words], cwd=ROOT, env=mine, capture_output=True, text=True, timeout=60)


def test_a_mistyped_size_trains_nothing() -> None:
    result = make("known-size", "SIZE=622M")
    assert result.returncode == 2
    assert "experiments/imagenet256 has no SIZE=622M; it has 177M 318M 662M." in result.stderr
    for target in ("train-ar", "eval-fid"):
        assert "has no SIZE" in make("--dry-run", target, "SIZE=622M").stdout.splitlines()[0]


@pytest.mark.parametrize("words", [("SIZE=177M",), ("EXPERIMENT=release", "SIZE=318M"), ("DATA=shapes",)])
def test_sizes_that_there_are(words: tuple[str, ...]) -> None:
    assert make("known-size", *words).returncode == 0


@pytest.mark.parametrize("target", ["tokenize", "eval-fid"])
def test_devices_share_what_is_not_training(target: str) -> None:
    started = "torchrun --standalone --nproc-per-node 2 -m alitok"
    assert started in make("--dry-run", target, "DATA=shapes", "DEVICES=2").stdout
    assert started not in make("--dry-run", target, "DATA=shapes").stdout
