"""Checkpoints of runs: how many stay, which one a run goes on from, what happens when they cannot be written."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny, token_cache

from alitok.artifacts.folder import read_card
from alitok.cli import main
from alitok.common.errors import BadInput
from alitok.common.tensors import _Watched
from alitok.training.checkpoint import checkpoints, read_checkpoint, set_aside_after
from alitok.training.launch import run

QUICK = [
    "--trainer.callbacks.samples",
    "null",
    "--trainer.callbacks.curves",
    "null",
    "--trainer.limit_val_batches",
    "0",
]
QUICK += ["--trainer.callbacks.checkpoint.every_n_train_steps", "2", "--model.phases", "{main: {steps: 10, lr: 1.e-3}}"]
QUICK += ["--trainer.logger.tensorboard", "null"]


def fit(folder: Path, *options: str, **arguments: Any) -> None:
    run("fit", tiny("generator", folder, *QUICK, *options), **arguments)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "generator" / "checkpoints").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    token_cache(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    token_cache(folder)
    fit(folder)
    return load_file(folder / "generator" / "artifact" / "model.safetensors")


def same(folder: Path, whole: dict[str, torch.Tensor]) -> bool:
    tensors = load_file(folder / "generator" / "artifact" / "model.safetensors")
    return all(torch.equal(tensors[name], whole[name]) for name in whole)


def test_as_many_stay_as_asked_and_the_end_is_one(folder: Path) -> None:
    fit(folder, "--trainer.max_steps", "5", "--trainer.callbacks.checkpoint.keep", "3")
    assert names(folder) == ["step=2.ckpt", "step=4.ckpt", "step=5.ckpt"]
    (folder / "generator" / "checkpoints" / ".step=6.ckpt.x.ckpt").write_bytes(b"left by a kill")
    fit(folder, "--trainer.max_steps", "6", "--trainer.callbacks.checkpoint.keep", "1")
    assert names(folder) == ["step=6.ckpt"]


def test_optimizer_state_is_by_name(folder: Path) -> None:
    fit(folder, "--trainer.max_steps", "2")
    checkpoint = read_checkpoint(folder / "generator" / "checkpoints" / "step=2.ckpt")
    (state,) = checkpoint["optimizer_states"]
    assert state["state"]["blocks.0.attention.qkv.weight"].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert {f"generator.{name}" for name in state["state"]} == checkpoint["state_dict"].keys()


def test_a_damaged_checkpoint_is_passed_over(
    folder: Path, whole: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(folder, "--trainer.max_steps", "6")
    last = folder / "generator" / "checkpoints" / "step=6.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    capsys.readouterr()
    fit(folder, "--ckpt_path", "last")
    captured = capsys.readouterr()
    assert captured.err.count("step=6.ckpt is damaged and passed over") == 1
    assert "steps 4 to 10" in captured.out
    assert same(folder, whole)


def test_a_named_checkpoint(folder: Path, whole: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    fit(folder, "--trainer.max_steps", "6")
    kept = folder / "generator" / "checkpoints" / "step=4.ckpt"
    fit(folder, "--ckpt_path", str(kept))
    captured = capsys.readouterr()
    assert "steps 4 to 10" in captured.out
    assert "step=6.ckpt.old is of a later step than 4" in captured.err
    assert (kept.parent / "step=6.ckpt.old").is_file()
    assert same(folder, whole)
    with pytest.raises(BadInput, match="There is no checkpoint"):
        fit(folder, "--ckpt_path", str(folder / "none.ckpt"), "--trainer.max_steps", "12")
    kept.write_bytes(b"no checkpoint")
    with pytest.raises(BadInput, match="damaged"):
        fit(folder, "--ckpt_path", str(kept), "--trainer.max_steps", "12")


def test_who_goes_back_continues_from_there(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (tmp_path / f"step={step}.ckpt").touch()
    assert [path.name for path in set_aside_after(tmp_path, 4)] == ["step=6.ckpt.old"]
    assert [path.name for path in checkpoints(tmp_path)] == ["step=4.ckpt", "step=2.ckpt"]
    assert set_aside_after(tmp_path, 4) == []


@pytest.mark.parametrize("left", ["", "{", "[]"])
def test_an_artifact_whose_card_was_lost_is_written_again(
    folder: Path, whole: dict[str, torch.Tensor], left: str
) -> None:
    fit(folder)
    (folder / "generator" / "artifact" / "card.json").write_text(left)
    (folder / "generator" / "config.yaml").write_text("")
    fit(folder)
    assert read_card(folder / "generator" / "artifact")["steps"] == 10
    assert same(folder, whole)


def test_a_full_disk_leaves_the_last_good_checkpoint(
    folder: Path, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: _Watched, data: Any) -> int:
        self.error = OSError(errno.ENOSPC, "No space left on device")
        raise self.error

    fit(folder, "--trainer.max_steps", "4")
    with monkeypatch.context() as patch:
        patch.setattr(_Watched, "write", full)
        config = folder / "config.yaml"
        words = ["fit", "-c", str(write(config, folder)), "--trainer.max_steps", "10"]
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step=6.ckpt: No space left on device; the last good checkpoint is" in error
    assert error.endswith("step=4.ckpt.")
    assert names(folder) == ["step=2.ckpt", "step=4.ckpt"]
    fit(folder)
    assert same(folder, whole)


def write(path: Path, folder: Path) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(tiny("generator", folder, *QUICK), sort_keys=False))
    return path


def test_replicas_are_compared_before_each_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differ(module: Any) -> None:
        raise BadInput("the replicas differ")

    monkeypatch.setattr("alitok.callbacks.checkpoints.check_replicas", differ)
    with pytest.raises(BadInput, match="the replicas differ"):
        fit(folder)
    assert not list(folder.rglob("*.ckpt"))


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    (folder / "generator").write_text("a file where the run's folder should be")
    with pytest.raises(BadInput, match="Cannot write"):
        fit(folder)


def test_another_configuration_is_refused_or_announced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(folder, "--trainer.max_steps", "2")
    with pytest.raises(BadInput, match=r"model\.weight_decay: .* -> 0.5"):
        fit(folder, "--model.weight_decay", "0.5")
    with pytest.raises(BadInput, match=r"data found: 38 of 40 images .* -> 20 of 40 images"):
        fit(folder, "--data.count", "20")
    capsys.readouterr()
    fit(folder, "--model.weight_decay", "0.5", "--trainer.max_steps", "4", allow_changes=True)
    captured = capsys.readouterr().err
    assert "continuing with a changed model.weight_decay" in captured
    assert "continuing with a changed trainer.max_steps: 2 -> 4" in captured
    with pytest.raises(BadInput, match="do not fit the model"):
        fit(folder, "--model.weight_decay", "0.5", "--model.generator.width", "64", allow_changes=True)


def test_another_tokenizers_tokens_are_refused(folder: Path) -> None:
    fit(folder, "--trainer.max_steps", "2")
    card = folder / "tokens" / "alitok.json"
    card.write_text(card.read_text().replace("d" * 64, "e" * 64))
    with pytest.raises(BadInput, match="began with tokenizer dddddddddddd, which is now eeeeeeeeeeee"):
        fit(folder)
