"""Every shipped YAML: it composes, and its full-size model really builds (on the meta device)."""

from pathlib import Path
from typing import Any

import pytest
import torch

from alitok.common.build import import_class
from alitok.config import compose_run
from alitok.studies.ladder_settings import LADDER

ROOT = Path(__file__).parents[1] / "experiments"
SIZED = [
    (ROOT / folder / "generator.yaml", path)
    for folder in ("imagenet256", "imagenet512", "release")
    for path in sorted(ROOT.glob("sizes/*.yaml"))
]
SIZED.append((ROOT / "bar" / "generator.yaml", ROOT / "bar" / "1.1B.yaml"))
SIZED.append((ROOT / "cifar10" / "tokenizer-stage1.yaml", ROOT / "cifar10" / "small.yaml"))
WHOLE = [(path,) for path in sorted(ROOT.glob("*/*.yaml")) if path.stem.startswith(("tokenizer", "generator"))]
LADDER_FILES = [
    (ROOT / "ablation" / "tokenizer.yaml", *(ROOT / "ablation" / f"{name}.yaml" for name in names))
    for names in LADDER.values()
]
PUBLISHED = {"177M": 177_048_064, "318M": 317_851_648, "662M": 662_141_696}


def build(files: tuple[Path, ...]) -> tuple[dict[str, Any], Any]:
    config = compose_run(files)
    with torch.device("meta"):
        return config, import_class(config["model"]["class_path"])(**config["model"]["init_args"])


def test_all_files_are_covered() -> None:
    covered = {path for files in [*SIZED, *WHOLE, *LADDER_FILES] for path in files}
    covered |= {ROOT / folder / "features.yaml" for folder in ("demo", "ablation")}  # below
    # laid over the bases in training/test_overlays.py, end_to_end/test_ideas.py and studies/test_league.py
    folders = ("strategies", "debug", "options", "ideas", "league")
    overlays = {path for folder in folders for path in (ROOT / folder).glob("*.yaml")}
    assert covered | overlays == set(ROOT.rglob("*.yaml"))


@pytest.mark.parametrize(
    "files", [*WHOLE, *SIZED, *LADDER_FILES], ids=lambda files: "+".join(f.stem for f in files) + files[0].parent.name
)
def test_it_composes_and_builds_at_full_size(files: tuple[Path, ...]) -> None:
    config, module = build(files)
    arguments = config["data"]["init_args"]
    assert arguments["global_batch"] >= 1
    if hasattr(module, "tokenizer"):
        assert arguments["image_size"] == module.tokenizer.image_size
        patches = (module.tokenizer.image_size // config["define"]["patch_size"]) ** 2
        assert module.tokenizer.num_tokens == config["define"]["num_prefix"] + patches
    assert module.schedule.total_steps > 0


@pytest.mark.parametrize("names", LADDER.values())
def test_the_ladders_feature_loss_and_other_patches_build(names: tuple[str, ...]) -> None:
    files = [ROOT / "ablation" / f"{name}.yaml" for name in ("tokenizer", *names, "features")]
    config = compose_run(files, ["--define.patch_size", "8"])
    with torch.device("meta"):
        module = import_class(config["model"]["class_path"])(**config["model"]["init_args"])
    assert module.terms["features"].weight == 0.02
    assert module.tokenizer.num_tokens == 16 + (4 if "prefix" in names else 0)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_demos_feature_loss_builds(stage: str) -> None:
    config, module = build((ROOT / f"demo/tokenizer-{stage}.yaml", ROOT / "demo/features.yaml"))
    assert config["model"]["init_args"]["losses"]["features"]["init_args"]["weights"] == "runs/demo/classifier"
    assert module.terms["features"].weight == 0.02


@pytest.mark.parametrize("size", PUBLISHED)
def test_release_generators_have_the_published_size(size: str) -> None:
    _, module = build((ROOT / "release/generator.yaml", ROOT / f"sizes/{size}.yaml"))
    assert sum(p.numel() for p in module.generator.parameters()) == PUBLISHED[size]


def test_release_tokenizers_have_the_published_size() -> None:
    stages = [build((ROOT / f"release/tokenizer-stage{stage}.yaml",))[1] for stage in (1, 2)]
    totals = [sum(p.numel() for p in module.tokenizer.parameters()) for module in stages]
    assert totals == [390_623_032, 389_899_308]
    assert sum(p.numel() for p in stages[1].tokenizer.parameters() if p.requires_grad) == 303_479_564


@pytest.mark.parametrize("stage", ["tokenizer-stage1", "tokenizer-stage2"])
def test_both_forms_share_the_recipe(stage: str) -> None:
    for name in ("release", "imagenet256", "imagenet512"):
        schedule = build((ROOT / name / f"{stage}.yaml",))[1].schedule
        assert schedule.warmup_steps == 10_000
        assert [phase.weights["lpips"] for phase in schedule.phases.values()] == [1.0, 0, 0]
        assert [phase.weights["convnext"] for phase in schedule.phases.values()] == [0.1, 1.0, 1.0]
        assert [phase.adversarial for phase in schedule.phases.values()] == [False, False, True]
    assert schedule.total_steps == (600_000 if stage == "tokenizer-stage1" else 300_000)


@pytest.mark.parametrize("stage", ["tokenizer-stage1", "tokenizer-stage2"])
def test_the_laptop_recipe_follows_its_patches(stage: str) -> None:
    config = compose_run([ROOT / "cifar10" / f"{stage}.yaml"], ["--define.image_size", "64"])
    with torch.device("meta"):
        module: Any = import_class(config["model"]["class_path"])(**config["model"]["init_args"])
    assert module.tokenizer.num_tokens == 16 + 16 * 16
    config = compose_run([ROOT / "cifar10" / "generator.yaml"], ["--define.rows", "16"])
    assert config["model"]["init_args"]["generator"]["init_args"]["grid"] == [16, 16]
