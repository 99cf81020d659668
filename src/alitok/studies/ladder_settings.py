"""The ladder's rungs, the order of work, and the settings that all rungs share."""

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alitok.common.errors import BadInput

# Rung -> the files of experiments/ablation that are laid over tokenizer.yaml, one change each.
LADDER: dict[str, tuple[str, ...]] = {
    "bidirectional": (),
    "causal": ("causal",),
    "prefix": ("causal", "prefix"),
    "auxiliary": ("causal", "prefix", "auxiliary"),
    "two-stage": ("causal", "prefix", "auxiliary", "two-stage"),
    "causal-encoder": ("causal-encoder",),
}
# Rungs that are trained with every seed; the others with the first only.
REPEATED = ("bidirectional", "causal", "auxiliary", "two-stage")
# The second stage uses this rung's first stage, tokens and generator.
STAGE1_OF_TWO = "auxiliary"


@dataclass(frozen=True)
class Settings:
    """The settings that all rungs share; written to OUT/settings.json. A later start must have the same."""

    data: str
    define: dict[str, str]
    files: str  # digest of the YAML files
    pictures: int
    samples: int
    tuning_samples: int
    guidance: list[float]
    classifier_steps: int
    precision: str
    perceptual: bool = False

    def record(self) -> dict[str, Any]:
        """For JSON. Without a perceptual loss its key is left out, as in versions without this option."""
        return {name: value for name, value in asdict(self).items() if value is not False}


def files_of(variant: str, configs: Path, settings: Settings) -> list[Path]:
    """The YAML files of a rung's tokenizer, each laid over those before it."""
    names = ("tokenizer", *LADDER[variant], *(["features"] if settings.perceptual else []))
    return [configs / f"{name}.yaml" for name in names]


def plan(variants: str | None, seeds: str) -> list[tuple[str, int]]:
    """(rung, seed) in the order of work: the whole ladder for the first seed, then the repeated rungs.

    Raises:
        BadInput: an unknown rung, a seed that is no whole number, or the second stage without its first.
    """
    from alitok.common.build import nearest
    from alitok.reports.runs import parse_seeds

    chosen = list(LADDER) if variants is None else [name.strip() for name in variants.split(",")]
    for name in chosen:
        if name not in LADDER:
            raise BadInput(f"--variants ({', '.join(LADDER)}): there is no rung {name!r}{nearest(name, LADDER)}")
    if "two-stage" in chosen and STAGE1_OF_TWO not in chosen:
        raise BadInput(f"--variants: two-stage is a second stage on the tokens of {STAGE1_OF_TWO}: name that one too.")
    chosen = [name for name in LADDER if name in chosen]
    return [
        (name, seed)
        for index, seed in enumerate(parse_seeds(seeds))
        for name in chosen
        if index == 0 or name in REPEATED
    ]


def settle(args: argparse.Namespace, configs: Path, out: Path) -> Settings:
    """The ladder's settings. `--precision auto` takes the precision of an earlier start.

    Raises:
        BadInput: a setting is invalid.
    """
    from alitok.common.hardware import faster_precision
    from alitok.common.work import read_settings
    from alitok.reports.runs import parse_scales

    for name, least in (("pictures", 20), ("samples", 20), ("tuning_samples", 20), ("classifier_steps", 1)):
        if getattr(args, name) < least:
            raise BadInput(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}.")
    guidance, define = parse_scales(args.guidance), {}
    for word in args.set:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise BadInput(f"--set takes KEY=VALUE, not {word!r}.")
        define[key] = value
    before = read_settings(out / "settings.json") or {}
    precision = before.get("precision") if args.precision == "auto" else args.precision
    settings = Settings(
        data=args.data,
        define=define,
        files=files_digest(configs, args.perceptual),
        pictures=args.pictures,
        samples=args.samples,
        tuning_samples=args.tuning_samples,
        guidance=guidance,
        classifier_steps=args.classifier_steps,
        precision=precision or faster_precision(),
        perceptual=args.perceptual,
    )
    defined(configs, settings)
    return settings


def begin(out: Path, settings: Settings) -> None:
    """Write the settings, or check that they match the stored ones. For one process, alone in the folder.

    Raises:
        BadInput: the folder holds a ladder with other settings, or something else.
    """
    from alitok.common.work import Work

    Work(out, json.loads(json.dumps(settings.record())), "a ladder").begin()


def files_digest(configs: Path, perceptual: bool) -> str:
    """SHA-256 over the ladder's YAML files.

    Raises:
        BadInput: one of them is missing.
    """
    digest = hashlib.sha256()
    names = {"tokenizer", "generator", *(["features"] if perceptual else [])}
    for name in sorted(names.union(*LADDER.values())):
        file = configs / f"{name}.yaml"
        if not file.is_file():
            raise BadInput(f"The ladder's file {file} is missing.")
        digest.update(file.read_bytes())
    return digest.hexdigest()


def defined(configs: Path, settings: Settings) -> dict[str, Any]:
    """The merged `define` blocks of tokenizer and generator, with --set applied.

    Raises:
        BadInput: an unknown key, or a value with which some rung cannot be built.
    """
    import torch

    from alitok.common.build import import_class, nearest
    from alitok.config import compose_run, load_yaml

    generator = configs / "generator.yaml"
    rungs = [files_of(name, configs, settings) for name in LADDER]
    shared = [*rungs[0], generator]  # the first rung has what all rungs have
    known = {key: value for file in shared for key, value in load_yaml(file).get("define", {}).items()}
    for key in settings.define:
        if key not in known:
            raise BadInput(f"--set: the ladder defines no {key!r}{nearest(key, known)}")
    for files in (*reversed(rungs), [generator]):  # the first rung's values stay
        config = compose_run(files, sets(files, settings))
        with torch.device("meta"):
            import_class(config["model"]["class_path"])(**config["model"]["init_args"])
        known |= config["define"]
    return known


def sets(files: list[Path], settings: Settings) -> list[str]:
    """The overrides of --set whose keys these files define."""
    from alitok.config import load_yaml

    known = {key for file in files for key in load_yaml(file).get("define", {})}
    return [f"--define.{key}={value}" for key, value in settings.define.items() if key in known]
