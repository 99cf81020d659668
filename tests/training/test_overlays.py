"""Strategy, debug and option overlays: each composes over each base, builds, and does what it says."""

from pathlib import Path

import pytest
from tiny import DEMO, GENERATOR, SMALL, token_cache

from alitok.artifacts.folder import CARD
from alitok.callbacks.curves import read_curves
from alitok.commands.lightning import run
from alitok.common.build import build, is_class_block
from alitok.common.errors import BadInput
from alitok.config import compose_run, load_yaml, resolve

ROOT = DEMO.parent
OVERLAYS = sorted(path for name in ("strategies", "debug", "options") for path in (ROOT / name).glob("*.yaml"))
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
