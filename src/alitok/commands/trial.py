"""Try ideas against their base: all trained over the same seeds, then one table and one page.

Each --idea is a YAML laid over the base (several with commas between: laid in order). Stopped at any point, the same
command goes on where it stopped. Differences are paired over the seeds, and the table says which of them are decided.
With --judge generators also get a FID by that extractor and their accuracy in a noisy context; tokenizers get rFID, a
probe of their tokens, linear probes of their features, and how stable their ids are.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alitok.commands.options import add_config_argument
from alitok.common.errors import BadInput

if TYPE_CHECKING:
    from alitok.reports.runs import Run
    from alitok.studies.trial import Judging

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "--idea",
        action="append",
        required=True,
        metavar="FILE,...",
        help="laid over it; give one for each idea",
    )
    parser.add_argument("--seeds", default="0,1", metavar="N,...", help="(default 0,1)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="for runs, table and page")
    parser.add_argument("--judge", metavar="WHAT", help="extractor for FIDs, e.g. the folder of train-classifier")
    parser.add_argument("--data", metavar="SPEC", help="with --judge: the real pictures")
    parser.add_argument("--tokenizer", metavar="DIR", help="with --judge, for generators: the artifact that decodes")
    parser.add_argument("--samples", type=int, default=2000, metavar="N", help="with --judge: of each gFID (2000)")
    parser.add_argument(
        "--guidance", default="0,2", metavar="S,...", help="with --judge: scales, a gFID for each (default 0,2)"
    )
    parser.add_argument(
        "--probe-steps", type=int, default=400, metavar="N", help="with --judge: of a tokenizer's probe (default 400)"
    )
    parser.epilog = (
        "example: alitok trial -c experiments/demo/tokenizer-stage1.yaml --idea experiments/ideas/perturbation.yaml"
        " --out runs/trial\n"
        "any --key value overrides the files of base and ideas alike; a key that only an idea has changes that idea"
    )


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from alitok.common.ends import alone_in
    from alitok.common.files import write_json, write_text
    from alitok.reports.comparison import write_page
    from alitok.reports.differences import table, verdict_table
    from alitok.reports.provenance import command, machine
    from alitok.reports.runs import open_runs, parse_seeds, training_seconds
    from alitok.training.launch import run as launch

    plans = compose_all(args.config, args.idea, parse_seeds(args.seeds), args.out, args.overrides)
    tokenizers = "tokenizer" in plans[0][2]["model"]["init_args"]
    judging = _judging(args, tokenizers)
    with alone_in(args.out):
        for number, (name, seed, config) in enumerate(plans, start=1):
            print(f"{number} of {len(plans)}: {name}, seed {seed}", flush=True)
            launch("fit", copy.deepcopy(config))
        if judging is not None:
            _judge(judging, plans, tokenizers)
    folders = [Path(config["trainer"]["default_root_dir"]) for _, _, config in plans]
    rows = [
        {"name": name, "seed": seed, "seconds": training_seconds(folder), **measures(run)}
        for (name, seed, _), folder, run in zip(plans, folders, open_runs(folders), strict=True)
    ]
    write_json(args.out / "trial.json", {"rows": rows, "command": command(), "machine": machine()})
    text = table(rows)
    if verdicts := verdict_table(rows):
        text += f"\n\n{verdicts}"
    write_text(args.out / "trial.md", f"{text}\n\nCommand: `{command()}`. Machine: {machine()}.\n")
    Console().print(Markdown(text))
    for note in write_page(folders, args.out / "compare.html"):
        print(f"note: {note}")
    print(f"{args.out}: trial.md, trial.json, compare.html of {len(folders)} runs")


def _judging(args: argparse.Namespace, tokenizers: bool) -> "Judging | None":
    """The options of --judge, looked at before anything is trained."""
    generators = {"tokenizer": None, "samples": 2000, "guidance": "0,2"}
    usual = {"data": None, "probe_steps": 400, **generators}
    given = [name for name, value in usual.items() if getattr(args, name) != value]
    if args.judge is None:
        for name in given:
            raise BadInput(f"--{name.replace('_', '-')} belongs to --judge: give that too.")
        return None
    for name in given:
        if name == "probe_steps" and not tokenizers:
            raise BadInput("--probe-steps is of a tokenizer's probe, and these are generators: leave it out.")
        if name in generators and tokenizers:
            raise BadInput(f"--{name} is of a generator's samples, and these are tokenizers: leave it out.")
    if args.data is None or (args.tokenizer is None and not tokenizers):
        raise BadInput("--judge needs --data SPEC of real pictures and, for generators, --tokenizer DIR.")
    if args.probe_steps < 1:
        raise BadInput(f"--probe-steps must be at least 1, not {args.probe_steps}.")
    try:
        scales = tuple(float(word) for word in args.guidance.split(","))
    except ValueError as error:
        raise BadInput(f"--guidance takes numbers with commas between, not {args.guidance!r}.") from error
    if args.samples < 2 or min(scales) < 0:
        raise BadInput(f"--samples must be at least 2 and scales not negative: {args.samples}, {args.guidance}.")
    from alitok.artifacts.folder import read_card
    from alitok.data.sources import open_source
    from alitok.evaluation.extractors import open_extractor
    from alitok.studies.trial import Judging

    if not tokenizers:
        read_card(Path(args.tokenizer), "tokenizer")
    open_extractor(args.judge, "cpu")
    open_source(args.data, "train")
    return Judging(args.judge, args.data, args.tokenizer, args.samples, scales, probe_steps=args.probe_steps)


def _judge(judging: "Judging", plans: Sequence[tuple[str, int, dict[str, Any]]], tokenizers: bool) -> None:
    from alitok.common.devices import pick_device
    from alitok.studies.trial import Judge
    from alitok.studies.trial_tokenizers import TokenizerJudge

    judge = (TokenizerJudge if tokenizers else Judge)(judging, pick_device("auto"))
    for number, (name, seed, config) in enumerate(plans, start=1):
        print(f"{number} of {len(plans)}: measuring {name}, seed {seed}", flush=True)
        judge.measure(config, Path(config["trainer"]["default_root_dir"]))


def compose_all(
    base: Sequence[str], ideas: Sequence[str], numbers: Sequence[int], out: Path, overrides: Sequence[str]
) -> list[tuple[str, int, dict[str, Any]]]:
    """(name, seed, configuration) of every run, so that what does not compose is said before anything is trained.

    Raises:
        BadInput: a configuration that does not compose, two ideas of one name, or an idea that changes nothing.
    """
    from alitok.config import compose_run, has_place, parse_overrides
    from alitok.reports.differences import BASE

    files: dict[str, list[str]] = {BASE: []}
    for words in ideas:
        overlay = words.split(",")
        name = "+".join(Path(file).stem for file in overlay)
        if name in files:
            raise BadInput(f"--idea {words}: there is a {name!r} already; runs are named by their files.")
        files[name] = overlay
    given: dict[str, list[str]] = {name: [] for name in files}
    for key, value in parse_overrides(overrides):
        takers = [name for name in files if has_place([*base, *files[name]], key)] or list(files)
        if len(takers) < len(files):
            print(f"--{key} concerns {', '.join(takers)} only: the others have no such key.", flush=True)
        for name in takers:
            given[name].append(f"--{key}={'null' if value is None else value}")
    plans = []
    for seed in numbers:
        configs: dict[str, dict[str, Any]] = {}
        for name, overlay in files.items():
            own = ["--seed_everything", str(seed), "--trainer.default_root_dir", str(out / name / f"seed-{seed}")]
            configs[name] = compose_run([*base, *overlay], [*given[name], *own])
            measure_the_end(configs[name])
            if name != BASE and all(configs[name][part] == configs[BASE][part] for part in ("model", "data")):
                raise BadInput(f"--idea {','.join(overlay)} changes nothing of the base's model or data.")
        plans += [(name, seed, config) for name, config in configs.items()]
    return plans


def measure_the_end(config: dict[str, Any]) -> None:
    """Where validations would miss the last step, there is one only, at the end."""
    from alitok.training.launch import total_steps

    total, trainer = total_steps(config), config["trainer"]
    if not isinstance(trainer.get("val_check_interval"), int) or total % trainer["val_check_interval"]:
        trainer["val_check_interval"] = total


def measures(run: "Run") -> dict[str, float]:
    """What the run's card measures, without the name of its part."""
    return {key.rpartition(": ")[2]: value for key, value in run.numbers.items()}
