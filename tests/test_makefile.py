"""What a make target refuses before it starts anything."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not of `make test`
    return subprocess.run(["make", *words], cwd=ROOT, env=mine, capture_output=True, text=True, timeout=300)


def test_a_mistyped_size_trains_nothing() -> None:
    result = make("known-size", "SIZE=622M")
    assert result.returncode == 2
    assert "there is no SIZE=622M; experiments/sizes has 177M 318M 662M." in result.stderr
    for target in ("train-ar", "eval-fid"):
        assert "no SIZE=622M" in make("--dry-run", target, "SIZE=622M").stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ((), "sizes/662M"),
        (("SIZE=177M",), "sizes/177M"),
        (("EXPERIMENT=release", "SIZE=318M"), "sizes/318M"),
        (("EXPERIMENT=bar", "SIZE=1.1B"), "bar/1.1B"),
        (("EXPERIMENT=mine", "SIZE=177M"), "sizes/177M"),
        (("EXPERIMENT=mine",), ""),
        (("EXPERIMENT=bar",), ""),
        (("EXPERIMENT=cifar10",), ""),
        (("DATA=shapes",), ""),
    ],
)
def test_the_size_is_the_one_given_or_the_papers_for_its_own_recipes(words: tuple[str, ...], size: str) -> None:
    assert make("known-size", *words).returncode == 0
    (line,) = [line for line in make("--dry-run", "train-ar", *words).stdout.splitlines() if "generator.yaml" in line]
    given = line.split("generator.yaml")[1].split("--define.run")[0].replace("-c", "").strip()
    assert given == (f"experiments/{size}.yaml" if size else "")


@pytest.mark.parametrize("target", ["tokenize", "eval-fid"])
def test_devices_share_what_is_not_training(target: str) -> None:
    started = "torchrun --standalone --nproc-per-node 2 -m alitok"
    assert started in make("--dry-run", target, "DATA=shapes", "DEVICES=2").stdout
    assert started not in make("--dry-run", target, "DATA=shapes").stdout
