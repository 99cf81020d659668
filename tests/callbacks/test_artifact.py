"""The end of a run: whatever stops it after its last step, the same command finishes it."""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import tiny, token_cache

from alitok.artifacts import folder as artifacts
from alitok.callbacks import metrics
from alitok.callbacks.artifact import ExportArtifact
from alitok.callbacks.average import WeightAverage
from alitok.callbacks.checkpoints import Checkpoints
from alitok.callbacks.curves import Curves
from alitok.callbacks.metrics import ValidationMetric
from alitok.cli import main
from alitok.training.base import TrainingModule

QUICK = ["--trainer.logger.tensorboard", "null", "--trainer.val_check_interval", "3"]
QUICK += ["--trainer.callbacks.checkpoint.every_n_train_steps", "2"]
STAGE1 = ["--model.phases", "{continuous: null, main: {steps: 4, lr: 1.e-3}}"]
AVERAGE = ["--trainer.callbacks.average.class_path", "alitok.callbacks.average.WeightAverage"]
MODULES = {
    "tokenizer-stage1": [*STAGE1, *AVERAGE],
    "generator": ["--model.phases", "{main: {steps: 4, lr: 1.e-3}}", "--trainer.callbacks.samples", "null"],
}


class Killed(BaseException):
    """What nobody catches."""


def write(folder: Path, name: str = "tokenizer-stage1", *options: str) -> list[str]:
    """The command that trains; the last step is checkpointed, but no multiple of the interval of validations."""
    file = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    if name == "generator":
        token_cache(folder)
    file.write_text(yaml.safe_dump(tiny(name, folder, *QUICK, *MODULES[name], *options), sort_keys=False))
    return ["fit", "-c", str(file)]


def run_of(folder: Path, name: str = "tokenizer-stage1") -> Path:
    return folder / ("generator" if name == "generator" else "stage1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that nothing stopped."""
    folders = {name: tmp_path_factory.mktemp("whole") / name for name in MODULES}
    for name, folder in folders.items():
        main(write(folder, name))
    return {name: run_of(folder, name) for name, folder in folders.items()}


def same(run: Path, whole: Path) -> bool:
    """Whether card, weights and the picture of the last step are those of the uninterrupted run."""
    cards = [json.loads((folder / "artifact" / "card.json").read_text()) for folder in (run, whole)]
    for card in cards:
        card.pop("data")  # names the folder
    weights = [load_file(folder / "artifact" / "model.safetensors") for folder in (run, whole)]
    pictures = [sorted(file.name for file in folder.glob("pictures/*")) for folder in (run, whole)]
    return (
        cards[0] == cards[1]
        and bool(cards[0]["metrics"])
        and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
        and pictures[0][-1:] == pictures[1][-1:]
    )


# What runs between the last step and the end of the command: where it is, and whether only the last call of it counts.
MOMENTS: dict[str, tuple[Any, str]] = {
    "the last checkpoint is written": (Checkpoints, "on_train_end"),
    "the last validation begins": (TrainingModule, "on_validation_epoch_start"),
    "within the last validation": (ValidationMetric, "on_validation_batch_end"),
    "the last validation ends": (TrainingModule, "on_validation_epoch_end"),
    "the curves are drawn": (Curves, "on_validation_end"),
    "the artifact begins": (ExportArtifact, "write"),
    "within the artifact": (artifacts, "_write"),
    "the curves are drawn for the last time": (Curves, "on_fit_end"),
}
ENDS: dict[str, Callable[[], BaseException]] = {
    "kill": Killed,
    "error": lambda: RuntimeError("a fault in a callback"),
    "full disk": lambda: OSError(errno.ENOSPC, "No space left on device", "somewhere"),
    "Ctrl-C": KeyboardInterrupt,
}


@contextmanager
def stopped(moment: str, end: str, steps: int = 4) -> Iterator[None]:
    """Inside, the moment of the last step ends the command."""
    owner, name = MOMENTS[moment]
    original = getattr(owner, name)

    def ending(*arguments: Any, **named: Any) -> Any:
        trainer = next((item for item in arguments if hasattr(item, "global_step")), None)
        trainer = trainer or getattr(arguments[0], "trainer", None)
        if trainer is None or trainer.global_step >= steps:
            raise ENDS[end]()
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, ending)
        yield


@pytest.mark.parametrize(
    ("moment", "end"),
    [*((moment, "kill") for moment in MOMENTS), *(("within the artifact", end) for end in ENDS if end != "kill")],
)
def test_the_same_command_finishes_what_was_stopped_after_the_last_step(
    moment: str, end: str, tmp_path: Path, whole: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = write(tmp_path)
    with stopped(moment, end), pytest.raises((Killed, RuntimeError, SystemExit)):
        main(command)
    capsys.readouterr()
    main(command)
    said = capsys.readouterr().out
    late = moment == "the curves are drawn for the last time"  # the artifact is there
    assert ("is finished (4 steps)" if late else "all 4 steps are done; what follows") in said
    assert same(run_of(tmp_path), whole["tokenizer-stage1"])
    main(command)
    assert "is finished (4 steps)" in capsys.readouterr().out


def test_a_generator_is_finished_too(tmp_path: Path, whole: dict[str, Path]) -> None:
    command = write(tmp_path, "generator")
    with stopped("the last validation begins", "kill"), pytest.raises(Killed):
        main(command)
    main(command)
    assert same(run_of(tmp_path, "generator"), whole["generator"])


def test_a_removed_artifact_is_written_again(tmp_path: Path, whole: dict[str, Path]) -> None:
    elsewhere = tmp_path / "elsewhere"
    command = write(tmp_path, "tokenizer-stage1", "--trainer.callbacks.artifact.folder", str(elsewhere))
    main(command)
    first = (elsewhere / "card.json").read_text()
    (elsewhere / "card.json").unlink()
    for file in elsewhere.iterdir():
        file.unlink()
    main(command)
    assert (elsewhere / "card.json").read_text() == first


def test_a_run_without_an_artifact_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*write(tmp_path), "--trainer.callbacks.artifact", "null"]
    main(command)
    main(command)
    assert "all 4 steps are done; callbacks.artifact is off, so no artifact" in capsys.readouterr().out


def test_a_time_limit_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = write(tmp_path, "tokenizer-stage1", "--trainer.max_time", "00:00:00:00")
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 143
    captured = capsys.readouterr()
    assert "of 4." in captured.out
    assert "terminated; run the same command again" in captured.err


def test_the_average_is_what_a_finished_run_measures(tmp_path: Path, whole: dict[str, Path]) -> None:
    command = write(tmp_path)
    seen = []
    with stopped("the artifact begins", "kill"), pytest.raises(Killed):
        main(command)
    with pytest.MonkeyPatch.context() as patch:
        original = WeightAverage.load_state_dict
        patch.setattr(WeightAverage, "load_state_dict", lambda self, state: seen.append(original(self, state)))
        main(command)
    assert seen
    assert same(run_of(tmp_path), whole["tokenizer-stage1"])


def test_validate_measures_the_average_too(whole: dict[str, Path], tmp_path: Path) -> None:
    """What the card of the artifact says."""
    command = write(tmp_path)
    main(command)
    logged: dict[str, float] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "log_everywhere", lambda module, values: logged.update(values))
        main(["validate", *command[1:]])
    card = json.loads((run_of(tmp_path) / "artifact" / "card.json").read_text())
    assert logged["psnr"] == pytest.approx(card["metrics"]["psnr"], rel=1e-6)
