"""Ends that others bring: SIGTERM, a closed pipe, a second start in the same folder, a job's time limit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny, token_cache

from alitok.cli import main
from alitok.common.ends import Terminated, alone_in, raise_on_sigterm, sigterm_postponed
from alitok.common.errors import BadInput
from alitok.training.base import TrainingModule
from alitok.training.checkpoint import checkpoints
from alitok.training.generator import GeneratorTraining

ROOT = Path(__file__).parents[2]


@pytest.fixture
def _handler(monkeypatch: pytest.MonkeyPatch) -> Any:
    # a command in the background of a shell inherits that SIGINT is ignored
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handler")
def test_sigterm_raises_unless_postponed() -> None:
    raise_on_sigterm()
    with sigterm_postponed():
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("_handler")
def test_a_handler_of_the_caller_stays() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    raise_on_sigterm()
    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]


def test_one_command_a_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path / "run"):
        with pytest.raises(BadInput, match=r"Another command is at work in .*run"), alone_in(tmp_path / "run"):
            pass
        with alone_in(tmp_path / "other"):
            pass
    with alone_in(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # "other" was left empty
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_a_killed_command_keeps_nobody_out(tmp_path: Path) -> None:
    code = (
        "import time; from alitok.common.ends import alone_in\n"
        f"with alone_in({str(tmp_path)!r}): print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(BadInput), alone_in(tmp_path):
            pass
        process.kill()
    with alone_in(tmp_path):
        pass


def test_a_closed_pipe_is_no_fault() -> None:
    command = f"{sys.executable} -m alitok --help | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", f"sleep 0; {command}"], capture_output=True, text=True)
    assert done.returncode in (0, 141)  # 0: all of it fitted into the pipe before the reader left
    assert done.stderr == ""


QUICK = [
    "--trainer.logger.tensorboard",
    "null",
    "--trainer.val_check_interval",
    "3",
    "--trainer.limit_val_batches",
    "0",
]
QUICK += ["--trainer.callbacks.samples", "null", "--trainer.callbacks.curves", "null"]
QUICK += ["--trainer.callbacks.checkpoint.every_n_train_steps", "100", "--model.generator.dropout", "0.1"]
QUICK += ["--model.phases", "{main: {steps: 5, lr: 1.e-3}}"]


def command(folder: Path) -> list[str]:
    token_cache(folder)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tiny("generator", folder, *QUICK), sort_keys=False))
    return ["fit", "-c", str(file)]


@pytest.mark.usefixtures("_handler")
@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_stopped_fit_writes_a_checkpoint_and_continues_to_the_same_weights(
    number: int,
    status: int,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    main(command(whole))
    original = TrainingModule.training_step

    def ended_from_outside(self: TrainingModule, batch: Any, batch_index: int) -> Any:
        if self.trainer.global_step == 2:
            os.kill(os.getpid(), number)
        return original(self, batch, batch_index)

    words = command(stopped)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", ended_from_outside)
        with pytest.raises(SystemExit) as ended:
            main(words)
    assert ended.value.code == status
    assert f"alitok: {word}; run the same command again to continue." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [path.name for path in checkpoints(stopped / "generator" / "checkpoints")] == ["step=3.ckpt"]
    main(words)
    weights = [load_file(folder / "generator" / "artifact" / "model.safetensors") for folder in (whole, stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.usefixtures("_handler")
def test_a_second_interrupt_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(self: TrainingModule, batch: Any, batch_index: int) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingModule, "training_step", impatient)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(SystemExit) as ended:
        main(command(tmp_path))
    assert ended.value.code == 130
    assert not checkpoints(tmp_path / "generator" / "checkpoints")


@pytest.mark.usefixtures("_handler")
def test_an_interrupt_in_a_validation_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = GeneratorTraining.validation_step

    def ended_from_outside(self: Any, batch: Any, batch_index: int) -> Any:
        if self.trainer.state.fn == "fit" and self.trainer.global_step == 2 and batch_index == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, batch_index)

    monkeypatch.setattr(GeneratorTraining, "validation_step", ended_from_outside)
    words = [*command(tmp_path), "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "2"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 130
    assert [path.name for path in checkpoints(tmp_path / "generator" / "checkpoints")] == ["step=2.ckpt"]


@pytest.mark.usefixtures("_handler")
def test_ctrl_c_in_a_terminal_reaches_the_loaders_workers_too(tmp_path: Path) -> None:
    """All processes of the group get it; the workers must not end the run before its checkpoint."""
    steps = "{main: {steps: 100000, lr: 1.0e-3}}"
    words = [*command(tmp_path), "--data.num_workers", "2", "--model.phases", steps]
    words += ["--trainer.val_check_interval", "100000", "--trainer.callbacks.checkpoint.every_n_train_steps", "10"]
    start = [sys.executable, "-m", "alitok", *words]
    with subprocess.Popen(
        start, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        try:
            limit = time.monotonic() + 300
            while not checkpoints(tmp_path / "generator" / "checkpoints") and time.monotonic() < limit:
                time.sleep(0.1)
            os.killpg(run.pid, signal.SIGINT)
            message = run.communicate(timeout=300)[1]
        finally:
            run.kill()
    assert run.returncode == 130, message
    assert message.count("stopping after this step or validation") == 1
    assert checkpoints(tmp_path / "generator" / "checkpoints")


def test_two_starts_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(tmp_path)
    with alone_in(tmp_path / "generator"), pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "Another command is at work in" in capsys.readouterr().err


# Each verb that works in a folder for minutes -> the folder that it keeps others out of.
FOLDERS = {
    "tokenize": "tokens.partial",
    "pairs": "pairs.partial",
    "sample": ".samples.partial",
    "tune-guidance": "search",
    "trial": "trial",
    "demo": "demo",
}


@pytest.mark.parametrize("verb", FOLDERS)
def test_two_starts_of_one_work(verb: str, tmp_path: Path, artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator, tokenizer = artifacts / "generator", artifacts / "tokenizer"
    pair = ["--generator", generator, "--tokenizer", tokenizer]
    for name in ("circle", "square", "star"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / name / "0.png")
    demo = ROOT / "experiments" / "demo"
    words: list[object] = {
        "tokenize": ["--tokenizer", tokenizer, "--data", "shapes", "--count", 4, "--out", tmp_path / "tokens"],
        "pairs": [*pair, "--data", tmp_path / "data", "--out", tmp_path / "pairs"],
        "sample": [*pair, "--count", 2, "--out", tmp_path / "samples"],
        "tune-guidance": [*pair, "--reference", "nowhere.npz", "--count", 40, "--out", tmp_path / "search"],
        "trial": ["-c", demo / "tokenizer-stage1.yaml", "--idea", demo.parent / "ideas" / "perturbation.yaml"],
        "demo": ["--out", tmp_path / "demo"],
    }[verb]
    words += ["--out", tmp_path / "trial"] if verb == "trial" else []
    with alone_in(tmp_path / FOLDERS[verb]), pytest.raises(SystemExit) as ended:
        main([verb, *map(str, words)])
    assert ended.value.code == 2
    assert f"Another command is at work in {tmp_path / FOLDERS[verb]}" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "status", "refused"), [(0, 0, 0), (0, 3, 0), (2, 0, 0), (2, 5, 1)])
def test_a_slurm_job_at_its_time_limit_is_queued_again(seconds: int, status: int, refused: int, tmp_path: Path) -> None:
    srun = f'echo "$@" > {tmp_path}/started; sleep {seconds}; exit {status}'
    for name, text in (("srun", srun), ("scontrol", f'echo "$@" > {tmp_path}/queued; exit {refused}')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    given = {"JOB_ID": "7", "NNODES": "2", "NTASKS_PER_NODE": "4", "CPUS_PER_TASK": "12"}
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {f"SLURM_{name}": value for name, value in given.items()}
    script = ["bash", str(ROOT / "experiments" / "strategies" / "slurm.sh"), "base.yaml", "--data.count", "8"]
    with subprocess.Popen(script, env=environment) as job:
        if seconds:
            time.sleep(0.5)
            job.send_signal(signal.SIGUSR1)
        assert job.wait() == status
    assert (tmp_path / "queued").exists() == bool(seconds)
    if seconds:
        assert (tmp_path / "queued").read_text() == "requeue 7\n"
    started = (tmp_path / "started").read_text()
    assert "--cpus-per-task=12 alitok fit -c base.yaml -c experiments/strategies/fsdp.yaml" in started
    assert started.endswith("--trainer.num_nodes 2 --trainer.devices 4 --data.count 8\n")


def test_a_slurm_job_without_a_configuration_says_how_to_start_it() -> None:
    script = ROOT / "experiments" / "strategies" / "slurm.sh"
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: sbatch experiments/strategies/slurm.sh BASE.yaml" in done.stderr
