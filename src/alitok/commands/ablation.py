"""The ladder of the paper's ablation: tokenizer and generator of each rung for each seed, and what they measure.

Stopped at any point, the same command goes on where it stopped; a finished rung is never done again. The results are
written anew after every rung.
"""

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alitok.common.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

# Rung -> the files of experiments/ablation that are laid over tokenizer.yaml, one change each.
LADDER: dict[str, tuple[str, ...]] = {
    "bidirectional": (),
    "causal": ("causal",),
    "prefix": ("causal", "prefix"),
    "auxiliary": ("causal", "prefix", "auxiliary"),
    "two-stage": ("causal", "prefix", "auxiliary", "two-stage"),
    "causal-encoder": ("causal-encoder",),
}
# Rungs that are repeated for every seed; the others have the first only.
REPEATED = ("bidirectional", "causal", "auxiliary", "two-stage")
# The second stage has the first stage, tokens and generator of this rung.
STAGE1_OF_TWO = "auxiliary"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="SPEC", help="pictures, 32 x 32, e.g. uoft-cs/cifar10")
    parser.add_argument("--out", default="runs/ablation", metavar="DIR", help="(default runs/ablation)")
    parser.add_argument(
        "--results", metavar="PATH", help="where PATH.json, PATH.md and PATH.png go (default: `ablation` in --out)"
    )
    parser.add_argument("--variants", metavar="NAME,...", help=f"of {', '.join(LADDER)} (default: all)")
    parser.add_argument("--seeds", default="0,1", metavar="N,...", help="(default 0,1; the second for the main rungs)")
    parser.add_argument("--config", metavar="DIR", help="folder of the ladder's YAML files (default: the shipped ones)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another value in the ladder's `define` blocks"
    )
    parser.add_argument("--pictures", type=int, default=5000, help="held-out pictures measured (default 5000)")
    parser.add_argument("--samples", type=int, default=2000, help="samples behind a gFID (default 2000)")
    parser.add_argument("--tuning-samples", type=int, default=500, help="behind a guidance tried (default 500)")
    parser.add_argument("--guidance", default="1.5,2,3,4,6", metavar="G,...", help="tried (default 1.5,2,3,4,6)")
    parser.add_argument("--classifier-steps", type=int, default=3000, help="of the measuring network (default 3000)")
    parser.add_argument("--precision", choices=["auto", "32-true", "bf16-mixed"], default="auto")
    parser.epilog = "example: alitok ablation --data uoft-cs/cifar10 --out runs/ablation"


@dataclass(frozen=True)
class Settings:
    """What all rungs of a ladder share; written to OUT/settings.json, and a second start must have the same."""

    data: str
    define: dict[str, str]
    files: str  # digest of the YAML files
    pictures: int
    samples: int
    tuning_samples: int
    guidance: list[float]
    classifier_steps: int
    precision: str


def run(args: argparse.Namespace) -> None:
    from alitok.commands.ablation_measures import Judge
    from alitok.commands.ablation_results import write_results
    from alitok.commands.compare import write_page
    from alitok.common.files import experiments_folder

    configs = Path(args.config) if args.config else experiments_folder() / "ablation"
    out = Path(args.out)
    work = plan(args.variants, args.seeds)
    settings = settle(args, configs, out)
    judge = Judge(settings, out, image_size=int(defined(configs, settings)["image_size"]))
    results = Path(args.results) if args.results else out / "ablation"
    for number, (variant, seed) in enumerate(work, start=1):
        folder = out / f"seed-{seed}" / variant
        print(f"rung {number} of {len(work)}: {variant}, seed {seed}", flush=True)
        if not (folder / "row.json").is_file():
            rung(variant, seed, folder, configs, settings, judge)
        write_results(out, results, judge.facts)
    folders = [file.parent for name in LADDER for file in sorted(out.glob(f"seed-*/{name}/row.json"))]
    if len(folders) > 1:
        write_page(folders, out / "compare.html", data=settings.data)
        print(f"{out / 'compare.html'}: {len(folders)} runs side by side")
    print(f"{results}.md, .json, .png: {len(folders)} rows")


def plan(variants: str | None, seeds: str) -> list[tuple[str, int]]:
    """(rung, seed) in the order of work: the whole ladder for the first seed, then the repeated rungs.

    Raises:
        BadInput: an unknown rung, a seed that is no whole number, or the second stage without its first.
    """
    from alitok.common.build import nearest

    chosen = list(LADDER) if variants is None else [name.strip() for name in variants.split(",")]
    for name in chosen:
        if name not in LADDER:
            raise BadInput(f"--variants: there is no rung {name!r}{nearest(name, LADDER)}")
    if "two-stage" in chosen and STAGE1_OF_TWO not in chosen:
        raise BadInput(f"--variants: two-stage is a second stage on the tokens of {STAGE1_OF_TWO}: name that one too.")
    chosen = [name for name in LADDER if name in chosen]
    try:
        numbers = list(dict.fromkeys(int(seed) for seed in seeds.split(",")))
    except ValueError as error:
        raise BadInput(f"--seeds takes whole numbers and commas, not {seeds!r}.") from error
    return [(name, seed) for index, seed in enumerate(numbers) for name in chosen if index == 0 or name in REPEATED]


def settle(args: argparse.Namespace, configs: Path, out: Path) -> Settings:
    """The ladder's settings; those of an earlier start of the same ladder hold on.

    Raises:
        BadInput: they differ from those of the earlier start, or make no sense.
    """
    from dataclasses import asdict

    from alitok.commands.demo import faster_precision
    from alitok.common.files import atomic_file

    for name, least in (("pictures", 20), ("samples", 20), ("tuning_samples", 20), ("classifier_steps", 1)):
        if getattr(args, name) < least:
            raise BadInput(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}.")
    try:
        guidance = [float(word) for word in args.guidance.split(",")]
    except ValueError as error:
        raise BadInput(f"--guidance takes numbers and commas, not {args.guidance!r}.") from error
    define = {}
    for word in args.set:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise BadInput(f"--set takes KEY=VALUE, not {word!r}.")
        define[key] = value
    file = out / "settings.json"
    before = json.loads(file.read_text()) if file.is_file() else {}
    precision = before.get("precision") if args.precision == "auto" else args.precision
    settings = Settings(
        data=args.data,
        define=define,
        files=files_digest(configs),
        pictures=args.pictures,
        samples=args.samples,
        tuning_samples=args.tuning_samples,
        guidance=guidance,
        classifier_steps=args.classifier_steps,
        precision=precision or faster_precision(),
    )
    defined(configs, settings)
    now = json.loads(json.dumps(asdict(settings)))
    if before and before != now:
        changed = ", ".join(key for key in now if before.get(key) != now[key])
        raise BadInput(f"{out} holds a ladder with other settings ({changed}): no rung may differ, name another --out.")
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(now, indent=2) + "\n")
    return settings


def files_digest(configs: Path) -> str:
    """SHA-256 over the ladder's YAML files.

    Raises:
        BadInput: one of them is missing.
    """
    digest = hashlib.sha256()
    for name in sorted({"tokenizer", "generator"}.union(*LADDER.values())):
        file = configs / f"{name}.yaml"
        if not file.is_file():
            raise BadInput(f"The ladder's file {file} is missing.")
        digest.update(file.read_bytes())
    return digest.hexdigest()


def defined(configs: Path, settings: Settings) -> dict[str, Any]:
    """The `define` blocks of tokenizer and generator together, as set.

    Raises:
        BadInput: a key that neither knows.
    """
    from alitok.common.build import nearest
    from alitok.config import load_yaml, parse_overrides

    known: dict[str, Any] = {}
    for name in ("tokenizer", "generator"):
        known |= load_yaml(configs / f"{name}.yaml").get("define", {})
    for key, value in parse_overrides([f"--{key}={value}" for key, value in settings.define.items()]):
        if key not in known:
            raise BadInput(f"--set: the ladder defines no {key!r}{nearest(key, known)}")
        known[key] = value
    return known


def sets(files: list[Path], settings: Settings) -> list[str]:
    """The overrides of --set that concern these files."""
    from alitok.config import load_yaml

    known = {key for file in files for key in load_yaml(file).get("define", {})}
    return [f"--define.{key}={value}" for key, value in settings.define.items() if key in known]


def rung(variant: str, seed: int, folder: Path, configs: Path, settings: Settings, judge: Any) -> None:
    """Trains and measures one rung; its row.json is there when all of it is done."""
    from alitok.common.files import atomic_file

    first = folder.parent / STAGE1_OF_TWO if variant == "two-stage" else folder
    files = [configs / "tokenizer.yaml", *(configs / f"{name}.yaml" for name in LADDER[variant])]
    shared = ["--seed_everything", str(seed), "--trainer.precision", settings.precision]
    own = [*shared, *sets(files, settings), "--define.run", str(folder), "--define.source", settings.data]
    if variant == "two-stage":
        fit(files, [*own, "--define.start", str(first / "stage1" / "artifact")])
        tokenizer = folder / "stage2"
    else:
        config = fit(files, own)
        tokenizer = folder / "stage1"
        cache_tokens(tokenizer / "artifact", settings.data, folder / "tokens")
        prefix = str(config["define"]["num_prefix"])
        classes = str(len(judge.class_names))
        files = [configs / "generator.yaml"]
        shared += sets(files, settings)
        fit(
            files,
            [*shared, "--define.run", str(folder), "--define.num_prefix", prefix, "--define.num_classes", classes],
        )
    parts = [first / "stage1", *([tokenizer] if variant == "two-stage" else []), first / "generator"]
    row, details = judge.measure(tokenizer / "artifact", first / "generator" / "artifact", folder, first / "tokens")
    row = {"variant": variant, "seed": seed, **row, **cost(parts)}
    for name, content in (("details", details), ("row", row)):  # the row last: it says that all is there
        with atomic_file(folder / f"{name}.json") as file:
            file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def cost(parts: list[Path]) -> dict[str, Any]:
    """Steps and seconds of training of all that a rung needs."""
    from alitok.commands.runs import read_json, training_seconds

    seconds = sum(training_seconds(part) or 0.0 for part in parts)
    steps = sum(read_json(part / "artifact" / "card.json")["steps"] for part in parts)
    return {"steps": steps, "seconds": round(seconds, 1)}


def fit(files: list[Path], overrides: list[str]) -> dict[str, Any]:
    """One `alitok fit`, which goes on where it stopped; returns its configuration."""
    import copy

    from alitok.commands.lightning import run as launch
    from alitok.config import compose_run

    config = compose_run(files, overrides)
    launch("fit", copy.deepcopy(config))
    return config


def cache_tokens(artifact: Path, data: str, folder: Path) -> None:
    """Tokens of the training pictures, uncropped and mirrored by no view: a view each."""
    from alitok.artifacts.folder import load_tokenizer
    from alitok.commands.device import pick_device
    from alitok.commands.tokenize import tokenize
    from alitok.data.sources import open_source

    if folder.is_dir():
        return
    tokenizer = load_tokenizer(artifact, pick_device("auto"))
    tokenize(tokenizer, open_source(data, "train", size=tokenizer.image_size), folder, crops="center", batch=128)


def load_pictures(data: str, split: Any, size: int, count: int | None) -> tuple["Tensor", "Tensor", list[str]]:
    """Pictures (B, 3, size, size) uint8, labels (B,) and class names of one split."""
    import torch
    from rich.progress import track

    from alitok.data.sources import open_source
    from alitok.data.transforms import center_crop, to_tensor

    source = open_source(data, split, size=size, count=count)
    images = torch.empty(len(source), 3, size, size, dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.int64)
    for index in track(range(len(source)), f"Pictures ({split})"):
        picture, label = source[index]
        images[index], labels[index] = to_tensor(center_crop(picture, size)), label
    return images, labels, source.class_names
