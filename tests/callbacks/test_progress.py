"""A tiny run with the command's callbacks: plain lines, curves, pictures and the artifact."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny

from alitok.artifacts.folder import read_card
from alitok.callbacks import progress
from alitok.reports.curves import read_curves
from alitok.training.launch import run

ARGUMENTS = ["--data.micro_batch", "3", "--trainer.callbacks.progress.line_every", "2", "--model.warmup_steps", "0"]
ARGUMENTS += ["--trainer.log_every_n_steps", "1", "--trainer.val_check_interval", "2"]
ARGUMENTS += ["--trainer.callbacks.checkpoint.every_n_train_steps", "2"]


def fit(folder: Path, steps: int) -> str:
    """What a fit of so many steps prints where the output is no terminal."""
    phases = f"{{continuous: {{steps: 2, lr: 1.e-3}}, main: {{steps: {steps - 2}, lr: 1.e-3}}}}"
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        config = tiny("tokenizer-stage1", folder, *ARGUMENTS, "--model.phases", phases)
        run("fit", config, allow_changes=True)  # the phase is longer when it goes on
    return output.getvalue()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of 4 steps, taken on to 6 by the same command; its folder, and what each start printed."""
    folder = tmp_path_factory.mktemp("run")
    return folder / "stage1", [fit(folder, 4), fit(folder, 6)]


def test_first_line_says_from_where_to_where_and_on_what(resumed: tuple[Path, list[str]]) -> None:
    root, outputs = resumed
    for output, steps in zip(outputs, ("0 to 4", "4 to 6"), strict=True):
        assert f"{root}: steps {steps} on 1 x cpu, 32-true; global batch 8 = 1 devices x 3 micro-batches of 3" in output


def test_plain_lines_tell_phase_and_images(resumed: tuple[Path, list[str]]) -> None:
    lines = [re.findall(r"^step .*$", output, re.MULTILINE) for output in resumed[1]]
    assert [line.split()[1] for line in lines[0]] == ["2/4", "2/4", "4/4", "4/4"]  # training, validation
    assert [line.split()[1] for line in lines[1]] == ["6/6", "6/6"]
    assert "phase main  images 48" in lines[1][0]
    assert re.search(r"train/loss 0\.\d+$", lines[0][0])


def test_the_last_line_of_a_run_tells_its_last_validation(resumed: tuple[Path, list[str]]) -> None:
    last = re.findall(r"^step .*$", resumed[1][1], re.MULTILINE)[-1]
    assert last == f"step 6/6  val/psnr {read_card(resumed[0] / 'artifact')['metrics']['psnr']:.4g}"


def test_curves_of_the_resumed_run_have_no_gap(resumed: tuple[Path, list[str]]) -> None:
    curves = read_curves(resumed[0])
    assert [step for step, _ in curves["train/loss"]] == [0, 1, 2, 3, 4, 5]
    assert len(curves["val/psnr"]) == 3
    assert (resumed[0] / "curves.png").is_file()


def test_pictures_are_kept_by_step(resumed: tuple[Path, list[str]]) -> None:
    names = sorted(path.name for path in (resumed[0] / "pictures").iterdir())
    assert names == [f"reconstruction-{step:07d}.png" for step in (2, 4, 6)]


def test_the_artifact_is_that_of_the_last_step(resumed: tuple[Path, list[str]]) -> None:
    card = read_card(resumed[0] / "artifact")
    assert (card["kind"], card["steps"], card["images_seen"]) == ("tokenizer", 6, 48)
    assert card["class_names"][0] == "circle"
    assert {"psnr", "codebook_usage"} <= card["metrics"].keys()


def test_the_last_line_names_what_lies_beside_the_artifact(resumed: tuple[Path, list[str]], tmp_path: Path) -> None:
    assert "artifact: the tokenizer after 6 steps; curves.png and logs next to it" in resumed[1][1]
    short = ["--model.phases", "{continuous: null, main: {steps: 2, lr: 1.e-3}}", "--trainer.limit_val_batches", "0"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        run("fit", tiny("tokenizer-stage1", tmp_path, *short))
    assert not (tmp_path / "stage1" / "curves.png").exists()
    assert "artifact: the tokenizer after 2 steps; logs next to it" in output.getvalue()


def test_a_finished_run_says_so(resumed: tuple[Path, list[str]]) -> None:
    assert "is finished (6 steps)" in fit(resumed[0].parent, 6)


def test_numbers_are_fetched_with_a_row_of_the_logs_and_after_a_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step, as the bar is drawn, the device would have to finish all that is queued there."""
    fetched: list[tuple[int, str]] = []

    def watched(trainer: Any, names: tuple[str, ...]) -> dict[str, str]:
        fetched.append((trainer.global_step, names[0]))
        return measured(trainer, names)

    measured = progress.measured
    monkeypatch.setattr(progress, "measured", watched)
    words = ["--trainer.log_every_n_steps", "4", "--trainer.val_check_interval", "6"]
    words += ["--trainer.callbacks.progress.line_every", "1", "--trainer.callbacks.curves", "null"]
    words += ["--trainer.num_sanity_val_steps", "0"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        phases = "{continuous: null, main: {steps: 8, lr: 1.e-3}}"
        run("fit", tiny("tokenizer-stage1", tmp_path, *words, "--model.phases", phases))
    assert [(step, name) for step, name in fetched if step] == [
        (4, "train/loss"),
        (6, "val/psnr"),
        (8, "train/loss"),
        *[(8, "val/psnr")] * sum(entry == (8, "val/psnr") for entry in fetched),
    ]
    lines = re.findall(r"^step (\d)/8 .*train/loss (\S+)$", output.getvalue(), re.MULTILINE)
    assert [step for step, _ in lines] == ["4", "5", "6", "7", "8"]
    assert len({loss for _, loss in lines}) == 2  # between two rows it stays


def test_minutes_left_of_all_work_are_shown_if_a_command_says_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "minutes left" not in fit(tmp_path / "alone", 4)
    monkeypatch.setattr(progress.Progress, "follows", 600.0)
    lines = re.findall(r"^step .*$", fit(tmp_path / "one of several", 4), re.MULTILINE)
    assert lines[0].endswith("minutes left of all 10")
