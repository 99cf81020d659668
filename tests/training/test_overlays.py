"""Strategy, debug and option overlays: each composes over each base, builds, and does what it says."""

from pathlib import Path

import pytest
import torch
from tiny import DEMO, GENERATOR, SMALL, tiny, token_cache

from alitok.artifacts.folder import CARD, load_generator
from alitok.common.build import build, is_class_block
from alitok.common.errors import BadInput
from alitok.config import compose_run, load_yaml, resolve
from alitok.reports.curves import read_curves
from alitok.studies.small import stacks
from alitok.training.launch import run

ROOT = DEMO.parent
FINETUNE = ROOT / "options" / "finetune.yaml"
OVERLAYS = sorted(path for name in ("strategies", "debug", "options") for path in (ROOT / name).glob("*.yaml"))
QUIET = ["--trainer.callbacks.samples", "null", "--trainer.limit_val_batches", "0"]
OVERLAYS.remove(FINETUNE)  # for generators alone
BASES = sorted(path for path in ROOT.glob("*/*.yaml") if "model" in load_yaml(path) and path not in OVERLAYS)
BASES = [path for path in BASES if {"class_path", "init_args"} <= load_yaml(path)["model"].keys()]


def test_there_are_overlays_and_bases() -> None:
    assert {path.stem for path in OVERLAYS} == {"ddp", "fsdp", "overfit", "profile", "average", "compile", "wandb"}
    assert {f"{path.parent.name}/{path.stem}" for path in BASES} >= {
        f"{folder}/{name}"
        for folder in ("demo", "cifar10", "imagenet256", "imagenet512", "release")
        for name in ("tokenizer-stage1", "tokenizer-stage2", "generator")
    }


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_it_composes_over_every_base_and_builds(overlay: Path) -> None:
    trainer = load_yaml(overlay).get("trainer", {})
    added = [block for block in trainer.values() if is_class_block(block)]
    added += [block for block in (trainer.get("callbacks") or {}).values() if is_class_block(block)]
    for base in BASES:
        config, plain = compose_run([base, overlay]), resolve([base])
        assert config["model"]["class_path"] == plain["model"]["class_path"]
        for key, value in (load_yaml(overlay).get("model") or {}).get("init_args", {}).items():
            assert config["model"]["init_args"][key] == value
        here = [*config["trainer"].values(), *config["trainer"]["callbacks"].values()]
        for block in added:
            (composed,) = (b for b in here if is_class_block(b) and b["class_path"] == block["class_path"])
            build(composed)


def tiny_with(overlay: str, folder: Path, name: str, *more: str) -> dict:
    small = GENERATOR if name == "generator" else SMALL
    return compose_run([DEMO / f"{name}.yaml", ROOT / overlay], ["--define.run", str(folder), *small, *more])


def test_overfitting_sees_one_batch(tmp_path: Path) -> None:
    config = tiny_with(
        "debug/overfit.yaml", tmp_path, "tokenizer-stage1", "--trainer.max_steps", "12", "--data.count", "8"
    )
    assert (
        compose_run([DEMO / "tokenizer-stage1.yaml", ROOT / "debug/overfit.yaml"])["data"]["init_args"]["count"] == 32
    )
    run("fit", config)
    losses = [value for _, value in read_curves(tmp_path / "overfit")["train/mse"]]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert not (tmp_path / "overfit" / "artifact" / CARD).exists()


def test_profiling_leaves_a_trace(tmp_path: Path) -> None:
    token_cache(tmp_path)
    run("fit", tiny_with("debug/profile.yaml", tmp_path, "generator", "--trainer.callbacks.samples", "null"))
    folder = tmp_path / "profile"
    assert any(path.suffix == ".json" for path in folder.iterdir())
    assert not (folder / "checkpoints").exists()


def test_weights_and_biases_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'alitok\[wandb\]'"):
        run("fit", tiny_with("options/wandb.yaml", tmp_path, "tokenizer-stage1"))
    assert not (tmp_path / "stage1").exists()


@pytest.mark.parametrize("stack", stacks(FINETUNE), ids=lambda stack: stack[0].parent.name)
def test_finetuning_composes_over_every_generator(stack: tuple[Path, ...]) -> None:
    arguments = compose_run(stack, ["--define.start", "there"])["model"]["init_args"]
    assert arguments["start_from"] == "there"
    assert list(arguments["phases"]) == ["main"]


def test_a_generator_learns_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers and codes carry over, the classes begin fresh."""
    token_cache(tmp_path)
    quick = [
        "--trainer.callbacks.samples",
        "null",
        "--model.phases.main.steps",
        "2",
        "--trainer.limit_val_batches",
        "0",
    ]
    run("fit", tiny("generator", tmp_path, *quick))
    start = tmp_path / "generator" / "artifact"
    own = ["--define.num_classes", "12", "--define.cache", str(tmp_path / "tokens"), "--define.start", str(start)]
    config = tiny_with("options/finetune.yaml", tmp_path / "own", "generator", *quick, *own)
    config["model"]["init_args"]["phases"]["main"]["lr"] = 0.0
    capsys.readouterr()
    run("fit", config)
    assert "26 of 26 tensors carry over; 12 new classes" in capsys.readouterr().out
    before, after = (load_generator(path) for path in (start, tmp_path / "own" / "generator" / "artifact"))
    old, new = (model.state_dict() for model in (before, after))
    rows = {name: (tensor, new[name]) for name, tensor in old.items() if tensor.shape != new[name].shape}
    assert list(rows) == ["embeddings.weight"]
    assert all(torch.equal(old[name], new[name]) for name in old.keys() - rows.keys())
    one, other = rows["embeddings.weight"]
    assert torch.equal(one[:33], other[:33])  # 32 codes and a row that nobody uses
    assert torch.equal(one[-1], other[-1])  # no class
    assert after.card["parents"]["start_from"] == before.card["digest"]


def test_a_generator_of_other_sizes_is_no_start(tmp_path: Path) -> None:
    token_cache(tmp_path)
    quick = [
        "--trainer.callbacks.samples",
        "null",
        "--model.phases.main.steps",
        "1",
        "--trainer.limit_val_batches",
        "0",
    ]
    run("fit", tiny("generator", tmp_path, *quick))
    own = ["--define.cache", str(tmp_path / "tokens"), "--define.start", str(tmp_path / "generator" / "artifact")]
    wide = ["--model.generator.width", "64", "--model.generator.heads", "4"]
    with pytest.raises(BadInput, match="another shape there; give the generator the same sizes"):
        run("fit", tiny_with("options/finetune.yaml", tmp_path / "own", "generator", *quick, *own, *wide))
