"""Kills a run at random moments and starts it again; `python tests/training/kills.py` makes the table."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import GAN, tiny, token_cache

from alitok.training.checkpoint import checkpoints

COMMON = ["--trainer.callbacks.curves", "null", "--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu"]
COMMON += ["--trainer.logger.tensorboard", "null", "--trainer.callbacks.checkpoint.every_n_train_steps", "7"]
COMMON += ["--model.warmup_steps", "5", "--trainer.callbacks.grid", "null"]
LECAM = [*GAN, "--model.adversarial.class_path", "alitok.losses.adversarial.MagvitGAN"]
AVERAGE = [
    "--trainer.callbacks.average",
    "{class_path: alitok.callbacks.average.WeightAverage, init_args: {decay: 0.9}}",
]
SIGNAL = 9
FOLDER = {"tokenizer-stage1": "stage1", "tokenizer-stage2": "stage2", "generator": "generator"}


class Signal(Callback):
    """Sends SIGTERM to the process of one rank, once in a run."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (SIGNAL, self.rank):
            os.kill(os.getpid(), signal.SIGTERM)


def configuration(name: str, folder: Path, shared: Path, steps: int) -> dict[str, Any]:
    """A tiny run that is in its GAN phase nearly from the start; bottleneck, dropout and dropped classes are on."""
    gan = f"{{main: {{steps: 4, lr: 1.e-3}}, gan: {{steps: {steps - 4}, lr: [1.e-3, 1.e-4], adversarial: true}}}}"
    options = {
        "tokenizer-stage1": [*LECAM, *AVERAGE, "--model.phases.continuous", "null", "--model.phases", gan],
        "tokenizer-stage2": [
            *LECAM,
            "--model.phases",
            gan,
            "--model.start_from",
            str(shared / "start" / "stage1" / "artifact"),
        ],
        "generator": [
            "--define.cache",
            str(shared / "tokens"),
            "--model.phases",
            f"{{main: {{steps: {steps}, lr: [1.e-3, 1.e-4]}}}}",
            "--trainer.callbacks.samples",
            "null",
            "--model.generator.dropout",
            "0.1",
        ],
    }[name]
    return tiny(name, folder, *COMMON, *options)


def prepare(shared: Path) -> None:
    """What the later stages start from."""
    from alitok.training.launch import run

    token_cache(shared)
    run("fit", configuration("tokenizer-stage1", shared / "start", shared, 10))


def start(config: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with open(log, "ab") as file:
        command = [sys.executable, "-m", "alitok", "fit", "-c", str(config)]
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)


def killed_run(name: str, folder: Path, shared: Path, steps: int, kills: int, seed: int) -> list[int]:
    """Trains `name` in `folder`, killed so many times at random moments; the newest checkpoint's step at each kill."""
    dice = random.Random(seed)
    folder.mkdir(parents=True)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(configuration(name, folder, shared, steps), sort_keys=False))
    places = []
    for _ in range(kills):
        before = newest_step(folder, name)
        process = start(file, folder / "log.txt")
        while newest_step(folder, name) <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 0.5))
        assert process.poll() is None, (folder / "log.txt").read_text()[-3000:]
        process.send_signal(signal.SIGKILL)
        process.wait()
        places.append(newest_step(folder, name))
    last = start(file, folder / "log.txt")
    assert last.wait() == 0, (folder / "log.txt").read_text()[-3000:]
    return places


def newest_step(folder: Path, name: str) -> int:
    found = checkpoints(folder / FOLDER[name] / "checkpoints")
    return int(found[0].stem.split("=")[1]) if found else 0


def differing(name: str, first: Path, second: Path) -> list[str]:
    """Tensors of the two runs' artifacts that are not the same to the last bit."""
    names = []
    for file in ("model.safetensors", "discriminator.safetensors"):
        paths = [folder / FOLDER[name] / "artifact" / file for folder in (first, second)]
        if paths[0].exists():
            one, other = map(load_file, paths)
            assert one.keys() == other.keys()
            names += [key for key in one if not torch.equal(one[key], other[key])]
    return names


def main() -> None:
    print("| module | steps | newest checkpoint at each of the ten kills | tensors that differ |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        shared = Path(name)
        prepare(shared)
        for module in FOLDER:
            row = compare(module, shared, steps=1500, kills=10)
            print(f"| {module} | 1500 | {', '.join(map(str, row[0]))} | {len(row[1])} |", flush=True)


def compare(name: str, shared: Path, steps: int, kills: int) -> tuple[list[int], list[str]]:
    """Steps of the kills, and the tensors that differ from an uninterrupted run's."""
    places = killed_run(name, shared / f"{name}-killed", shared, steps, kills, seed=0)
    whole = shared / f"{name}-whole"
    killed_run(name, whole, shared, steps, kills=0, seed=0)  # a process like the others: threads decide the last bits
    return places, differing(name, whole, shared / f"{name}-killed")


if __name__ == "__main__":
    main()
