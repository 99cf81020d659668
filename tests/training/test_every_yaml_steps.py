"""Every shipped run takes a step of each phase, at reduced size, with its own losses, discriminator and data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEMO, train
from torch import nn

from alitok.artifacts.folder import save_artifact
from alitok.config import compose_run
from alitok.data.token_shards import write_token_cache
from alitok.losses import perceptual

ROOT = DEMO.parent
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/tokenizer-stage2.yaml"))
GENERATORS = [
    *((path,) for path in sorted(ROOT.glob("*/generator.yaml"))),
    *((ROOT / "imagenet256" / "generator.yaml", path) for path in sorted(ROOT.glob("sizes/*.yaml"))),
]
DATA = ["--data.global_batch", "2", "--data.num_workers", "0"]
SHAPES = ["--define.source", "shapes", "--data.count", "8", "--data.val_count", "2"]


@pytest.fixture(autouse=True)
def small_convnext(monkeypatch: pytest.MonkeyPatch) -> None:
    """ConvNeXt-S at 224 x 224 takes seconds a picture."""
    network = replace(
        perceptual.CONVNEXT_SMALL,
        build=lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 1000)),
    )
    monkeypatch.setattr(perceptual, "CONVNEXT_SMALL", network)


def reduced(files: tuple[Path, ...], run: Path, *overrides: str) -> dict[str, Any]:
    """The composed run with a step or, where two networks take turns, two of each phase."""
    base = compose_run(files)["model"]["init_args"]
    words = ["--define.run", str(run), *DATA, *overrides, "--model.warmup_steps", "0"]
    for name, phase in base["phases"].items():
        words += [f"--model.phases.{name}.steps", "2" if phase.get("adversarial") else "1"]
    return compose_run(files, words)


def tokenizer_run(folder: str, stage: int, run: Path) -> dict[str, Any]:
    """4 x 4 patches and as many prefix tokens as the recipe has beside those of the first row."""
    file = ROOT / folder / f"tokenizer-stage{stage}.yaml"
    config = compose_run([file])
    define, arguments = config["define"], config["model"]["init_args"]
    extra = define["num_prefix"] - define["image_size"] // define["patch_size"]
    prefix = 4 + max(0, extra)
    words = ["--define.image_size", str(4 * define["patch_size"]), "--define.num_prefix", str(prefix)]
    words += ["--model.tokenizer.encoder.num_latents", str(prefix + 16), "--define.codebook_size", "32", *SHAPES]
    for part in ("encoder", "decoder"):
        words += [f"--model.tokenizer.{part}.{key}" for key in ("width=32", "depth=1", "heads=2")]
    networks = [
        ("lpips", "vgg_weights"),
        ("convnext", "weights"),
        ("prefix.perceptual", "weights"),
        ("features", "weights"),
    ]
    for name, key in networks:
        block: Any = arguments["losses"]
        for step in name.split("."):
            block = block.get(step) or block.get("init_args", {}).get(step) or {}
        if block:
            words += [f"--model.losses.{name}.{key}", "random:0"]
    return reduced((file,), run, *words)


@pytest.mark.parametrize("folder", FOLDERS)
def test_both_stages_of_every_tokenizer(folder: str, tmp_path: Path) -> None:
    for stage in (1, 2):
        config = tokenizer_run(folder, stage, tmp_path)
        phases = config["model"]["init_args"]["phases"]
        module = train(config, sum(phase["steps"] for phase in phases.values()))
        assert all(tensor.isfinite().all() for tensor in module.tokenizer.state_dict().values())
        extra = {"discriminator": (module.discriminator.block, module.discriminator)} if module.discriminator else None
        block = config["model"]["init_args"]["tokenizer"]
        save_artifact(tmp_path / f"stage{stage}" / "artifact", block, module.tokenizer, {"kind": "tokenizer"}, extra)
    assert set(module.parents) == {"stage1"}


@pytest.mark.parametrize("files", GENERATORS, ids=lambda files: f"{files[0].parent.name}-{files[-1].stem}")
def test_every_generator(files: tuple[Path, ...], tmp_path: Path) -> None:
    define = compose_run(files)["define"]
    rows, columns = compose_run(files)["model"]["init_args"]["generator"]["init_args"]["grid"]
    tokens, codes = define["num_prefix"] + rows * columns, define["codebook_size"]
    drawn = torch.Generator().manual_seed(0)
    images = [(i % 3, torch.randint(codes, (2, tokens), generator=drawn).numpy()) for i in range(6)]
    write_token_cache(
        tmp_path / "tokens",
        images,
        codebook_size=codes,
        digest="d" * 64,
        class_names=["a", "b", "c"],
        recipe={},
    )
    words = [f"--model.generator.{key}" for key in ("width=32", "depth=1", "heads=2")]
    module = train(reduced(files, tmp_path, *words), 1)
    assert module.generator.num_tokens == tokens
    assert all(tensor.isfinite().all() for tensor in module.generator.state_dict().values())
