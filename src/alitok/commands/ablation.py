"""Run the ladder of the paper's ablation: train and measure tokenizer and generator of each rung for each seed.

If you stop the command, the same command continues; it never repeats a finished rung. It rewrites the results after
every rung. The rungs are fixed: use `alitok trial` for your own ideas.
"""

import argparse
from pathlib import Path
from typing import Any

from alitok.studies.ladder_settings import LADDER, STAGE1_OF_TWO, Settings, begin, defined, files_of, plan, sets, settle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="SPEC", help="pictures, 32 x 32, e.g. uoft-cs/cifar10")
    parser.add_argument("--out", default="runs/ablation", metavar="DIR", help="(default runs/ablation)")
    parser.add_argument(
        "--results", metavar="PATH", help="where PATH.json, PATH.md and PATH.png go (default: `ablation` in --out)"
    )
    parser.add_argument("--variants", metavar="NAME,...", help=f"rungs: {', '.join(LADDER)} (default: all)")
    parser.add_argument(
        "--seeds", default="0,1", metavar="N,...", help="(default 0,1; prefix and causal-encoder: the first only)"
    )
    parser.add_argument("--config", metavar="DIR", help="folder of the ladder's YAML files (default: the shipped ones)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another value in the ladder's `define` blocks"
    )
    parser.add_argument("--pictures", type=int, default=5000, help="held-out pictures measured (default 5000)")
    parser.add_argument("--samples", type=int, default=2000, help="samples behind a gFID (default 2000)")
    parser.add_argument("--tuning-samples", type=int, default=500, help="samples per guidance scale (default 500)")
    parser.add_argument("--guidance", default="3,6,9,12", metavar="G,...", help="scales to try (default 3,6,9,12)")
    parser.add_argument(
        "--classifier-steps", type=int, default=3000, help="training steps of the measuring network (default 3000)"
    )
    parser.add_argument(
        "--perceptual", action="store_true", help="a perceptual loss beside MSE, by another classifier of the pictures"
    )
    parser.add_argument("--precision", choices=["auto", "32-true", "bf16-mixed"], default="auto")
    parser.epilog = "example: alitok ablation --data uoft-cs/cifar10 --out runs/ablation"


def run(args: argparse.Namespace) -> None:
    from alitok.common.ends import alone_in
    from alitok.common.files import check_writable, experiments_folder
    from alitok.reports.comparison import write_page
    from alitok.studies.ladder_measures import Judge
    from alitok.studies.ladder_results import write_results

    configs = Path(args.config) if args.config else experiments_folder() / "ablation"
    out = Path(args.out)
    work = plan(args.variants, args.seeds)
    results = Path(args.results) if args.results else out / "ablation"
    check_writable(results.with_name(f"{results.name}.json"))
    settings = settle(args, configs, out)
    sizes = defined(configs, settings)
    with alone_in(out):
        begin(out, settings)
        judge = Judge(settings, out, int(sizes["image_size"]), int(sizes["image_size"]) // int(sizes["patch_size"]))
        for number, (variant, seed) in enumerate(work, start=1):
            folder = out / f"seed-{seed}" / variant
            print(f"rung {number} of {len(work)}: {variant}, seed {seed}", flush=True)
            if not judge.has_measured(folder):
                rung(variant, seed, folder, configs, settings, judge)
            write_results(out, results, judge.facts)
    folders = [file.parent for name in LADDER for file in sorted(out.glob(f"seed-*/{name}/row.json"))]
    if len(folders) > 1:
        write_page(folders, out / "compare.html", data=settings.data)
        print(f"{out / 'compare.html'}: {len(folders)} runs side by side")
    print(f"{results}.md, .json, .png: {len(folders)} rows")


def rung(variant: str, seed: int, folder: Path, configs: Path, settings: Settings, judge: Any) -> None:
    """Train and measure one rung; its row.json is written last."""
    from alitok.common.files import write_json
    from alitok.reports.curves import read_curves
    from alitok.studies.ladder_measures import last_tenth

    first = folder.parent / STAGE1_OF_TWO if variant == "two-stage" else folder
    files = files_of(variant, configs, settings)
    shared = ["--seed_everything", str(seed), "--trainer.precision", settings.precision]
    own = [*shared, *sets(files, settings), "--define.run", str(folder), "--define.source", settings.data]
    if settings.perceptual:
        own += ["--model.losses.features.weights", str(judge.loss_classifier)]
    if variant == "two-stage":
        fit(files, [*own, "--define.start", str(first / "stage1" / "artifact")])
        tokenizer = folder / "stage2"
    else:
        config = fit(files, own)
        tokenizer = folder / "stage1"
        cache_tokens(tokenizer / "artifact", settings.data, folder / "tokens")
        files = [configs / "generator.yaml"]
        own = [*shared, *sets(files, settings), "--define.run", str(folder)]
        own += ["--define.num_prefix", str(config["define"]["num_prefix"])]
        own += ["--define.num_classes", str(len(judge.class_names))]
        fit(files, [*own, "--model.generator.grid", f"[{judge.rows}, {judge.rows}]"])
    parts = [first / "stage1", *([tokenizer] if variant == "two-stage" else []), first / "generator"]
    row, details = judge.measure(tokenizer / "artifact", first / "generator" / "artifact", folder, first / "tokens")
    details["last_tenth"] = last_tenth(read_curves(first / "generator"))
    row = {"variant": variant, "seed": seed, **row, **cost(parts)}
    for name, content in (("details", details), ("row", row)):  # the row last: it marks the rung as complete
        write_json(folder / f"{name}.json", content)


def cost(parts: list[Path]) -> dict[str, Any]:
    """Training steps and seconds of all parts that a rung needs."""
    from alitok.reports.runs import read_json, training_seconds

    seconds = sum(training_seconds(part) or 0.0 for part in parts)
    steps = sum(read_json(part / "artifact" / "card.json")["steps"] for part in parts)
    return {"steps": steps, "seconds": round(seconds, 1)}


def fit(files: list[Path], overrides: list[str]) -> dict[str, Any]:
    """Run one `alitok fit`, resuming if possible; return its configuration."""
    import copy

    from alitok.config import compose_run
    from alitok.training.launch import run as launch

    config = compose_run(files, overrides)
    launch("fit", copy.deepcopy(config))
    return config


def cache_tokens(artifact: Path, data: str, folder: Path) -> None:
    """Cache the tokens of the training pictures, one center view each, unless the cache exists."""
    from alitok.artifacts.folder import load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.data.encoding import tokenize
    from alitok.data.sources import open_source

    if folder.is_dir():
        return
    tokenizer = load_tokenizer(artifact, pick_device("auto"))
    tokenize(tokenizer, open_source(data, "train", size=tokenizer.image_size), folder, crops="center", batch=128)
