"""fit, validate and test around Lightning: interruption, finished runs, weight files."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny

from alitok.cli import main
from alitok.common import devices
from alitok.training import launch as lightning
from alitok.training.base import TrainingModule

QUICK = [
    "--trainer.limit_val_batches",
    "0",
    "--trainer.callbacks.curves",
    "null",
    "--trainer.logger.tensorboard",
    "null",
]
QUICK += ["--model.phases", "{continuous: null, main: {steps: 4, lr: 1.e-3}}"]
QUICK += ["--trainer.callbacks.checkpoint.every_n_train_steps", "1"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tiny("tokenizer-stage1", tmp_path, *QUICK), sort_keys=False))
    return file


def test_bfloat16_is_warned_of_where_float32_is_faster(
    config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    devices.warn_of_bfloat16.cache_clear()
    main(["fit", "-c", str(config), "--trainer.precision", "32-true", "--trainer.max_steps", "1"])
    assert not caplog.records
    main(["fit", "-c", str(config), "--trainer.precision", "bf16-mixed", "--trainer.max_steps", "2"])
    devices.warn_of_bfloat16.cache_clear()
    assert [record.message for record in caplog.records if "bfloat16" in record.message] == [
        "This processor has no products of bfloat16 matrices: float32 is hundreds of times faster here."
    ]


def test_control_c_ends_in_one_line_and_the_same_command_goes_on(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = TrainingModule.training_step

    def interrupted(self: TrainingModule, batch: Any, batch_index: int) -> Any:
        if self.trainer.global_step == 2:
            raise KeyboardInterrupt
        return original(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(SystemExit) as ended:
            main(["fit", "-c", str(config)])
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == "alitok: interrupted; run the same command again to continue."
    main(["fit", "-c", str(config)])
    assert "steps 2 to 4" in capsys.readouterr().out


def test_a_finished_fit_asks_for_nothing_and_weight_files_are_looked_for_once(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(lightning, "check_weight_files", lambda config: asked.append(1))
    main(["fit", "-c", str(config)])
    assert asked == [1]
    assert capsys.readouterr().out.splitlines()[1] == "Passed over or guessed: nothing."
    main(["fit", "-c", str(config)])
    assert asked == [1]
    assert "is finished (4 steps); name another folder" in capsys.readouterr().out
    main(["fit", "-c", str(config), "--data.num_workers", "1"])  # trains nothing else
    assert "is finished (4 steps); name another folder" in capsys.readouterr().out
    main(["fit", "-c", str(config), "--data.seed", "5"])
    assert "is finished (4 steps), with other settings (data.seed: 0 -> 5); name another" in capsys.readouterr().out


def test_a_missing_weight_file_stops_a_fit_at_once(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    term = "{class_path: alitok.losses.perceptual.ConvNeXtLogits, init_args: {weights: /none/convnext.pth}}"
    with pytest.raises(SystemExit) as ended:
        main(["fit", "-c", str(config), "--model.losses.convnext", term])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "Missing weight file" in line
    assert not (config.parent / "stage1").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("gradient_clip_val", "1.0", "set model.clip"),
        ("accumulate_grad_batches", "4", "set data.micro_batch"),
        ("limit_train_batches", "0.1", "configuration is not valid"),
        ("precision", "bf16-true", "precision bf16-true is not supported; use bf16-mixed or 32-true"),
        ("max_steps", "0", "at least 1, not 0"),
        ("max_steps", "-1", "at least 1, not -1"),
    ],
)
def test_options_of_the_trainer_that_cannot_be_kept_end_in_one_sentence(
    option: str, value: str, words: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "-c", str(config), f"--trainer.{option}", value])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
