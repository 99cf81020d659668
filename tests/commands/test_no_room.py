"""Every verb that writes, if no file may grow: exit status 2, one sentence, nothing half-written."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

PAIR = "--device cpu --generator GEN --tokenizer TOK"
TUNE = "--reference SET --extractor clf --scales 2 --powers 1 --count 20 --refine 0"
CASES = {
    "import-release g.bin --out OUT/a": "a",
    "export-release imported --out OUT/a.bin": "a.bin",
    "tokenize --device cpu --tokenizer TOK --data PETS --out OUT/cache": "cache",
    f"pairs {PAIR} --data PETS --out OUT/pairs": "pairs",
    f"sample {PAIR} --count 4 --out OUT/s.npz": "s.npz",
    f"sample {PAIR} --count 4 --out OUT/s": "s",
    f"sample {PAIR} --classes 0 --out OUT/s.png": "s.png",
    "reconstruct --tokenizer TOK PETS --out OUT/r": "r/grid.png",
    "train-classifier --data PETS --steps 2 --width 4 --size 32 --out OUT/c": "c",
    "evaluate SET --reference SET --extractor clf --json OUT/e.json": "e.json",
    f"tune-guidance {PAIR} {TUNE} --out OUT/t": "t/guidance.json",
    "probe cache --steps 2 --width 64 --depth 1 --held-out 1 --json OUT/p.json": "p.json",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, artifacts: Path, golden: Any) -> Path:
    """What the commands read."""
    folder = tmp_path_factory.mktemp("place")
    for number in range(4):
        path = folder / "pets" / ("circle", "square")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    images = np.random.default_rng(9).integers(0, 256, (8, 32, 32, 3), np.uint8)
    np.savez(folder / "set.npz", arr_0=images)
    torch.save(golden.fill(golden.json("official_ar_tiny_keys")), folder / "g.bin")
    for words in (
        "import-release g.bin --out imported",
        "train-classifier --data pets --steps 2 --width 4 --size 32 --out clf",
        f"tokenize --device cpu --tokenizer {artifacts / 'tokenizer'} --data pets --out cache",
    ):
        assert start(words, folder).returncode == 0
    return folder


def start(words: str, folder: Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    def lower() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "alitok", *words.split()]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, preexec_fn=lower)


@pytest.mark.slow
@pytest.mark.parametrize("words", CASES)
def test_no_file_may_grow(words: str, place: Path, artifacts: Path, tmp_path: Path) -> None:
    inputs = {"GEN": artifacts / "generator", "TOK": artifacts / "tokenizer", "PETS": "pets", "SET": "set.npz"}
    command = words.replace("OUT", str(tmp_path))
    for name, path in inputs.items():
        command = command.replace(name, str(path))
    done = start(command, place, limit=16)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert lines[-1].startswith("alitok: Cannot write"), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / CASES[words]).exists()
    assert start(command, place).returncode == 0  # the same command again
    assert (tmp_path / CASES[words]).exists()
