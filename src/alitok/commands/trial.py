"""Compare ideas with their base: train all with the same seeds, then write one table and one page.

Each --idea is a YAML laid over the base (or several, separated by commas and laid in order). If you stop the command,
the same command continues. Differences are paired over the seeds, and the table marks those that are decided. With
--judge generators also get a FID with that extractor and their accuracy in a noisy context; tokenizers get rFID, a
probe of their tokens, linear probes of their features, and the stability of their ids.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from alitok.commands.options import add_config_argument
from alitok.common.errors import BadInput

if TYPE_CHECKING:
    from alitok.studies.judges import Judging

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "--idea",
        action="append",
        default=[],
        metavar="FILE,...",
        help="laid over it; give one for each idea",
    )
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A,B,...", help="an idea for each value of a key, by itself"
    )
    parser.add_argument("--seeds", default="0,1", metavar="N,...", help="(default 0,1)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for runs, table and page")
    parser.add_argument("--judge", metavar="WHAT", help="extractor for FIDs, e.g. the folder of train-classifier")
    parser.add_argument("--data", metavar="SPEC", help="with --judge: the real pictures")
    parser.add_argument("--tokenizer", metavar="DIR", help="with --judge, for generators: the artifact that decodes")
    parser.add_argument(
        "--samples", type=int, default=2000, metavar="N", help="with --judge: samples of each gFID (2000)"
    )
    parser.add_argument(
        "--guidance",
        default="0,2",
        metavar="S,...",
        help="with --judge: guidance scales, a gFID for each (default 0,2)",
    )
    parser.add_argument(
        "--probe-steps",
        type=int,
        default=400,
        metavar="N",
        help="with --judge: training steps of a tokenizer's probe (default 400)",
    )
    parser.epilog = (
        "example: alitok trial -c experiments/demo/tokenizer-stage1.yaml --idea experiments/ideas/perturbation.yaml"
        " --out runs/trial\n"
        "any --key value overrides the files of base and ideas alike; a key that only an idea has changes that idea"
    )


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from alitok.reports.runs import parse_seeds
    from alitok.studies.trial import plan, run_trial, trains_tokenizer

    if not args.idea and not args.sweep:
        raise BadInput("A trial needs an idea to try: give --idea FILE or --sweep KEY=A,B.")
    plans = plan(args.config, args.idea, args.sweep, parse_seeds(args.seeds), args.out, args.overrides)
    judging = _judging(args, trains_tokenizer(plans[0][2]))
    text, notes = run_trial(plans, args.out, judging)
    Console().print(Markdown(text))
    for note in notes:
        print(f"note: {note}")
    print(f"{args.out}: trial.md, trial.json, compare.html")


def _judging(args: argparse.Namespace, tokenizers: bool) -> "Judging | None":
    """The settings of --judge, checked before anything is trained."""
    generators = {"tokenizer": None, "samples": 2000, "guidance": "0,2"}
    usual = {"data": None, "probe_steps": 400, **generators}
    given = [name for name, value in usual.items() if getattr(args, name) != value]
    if args.judge is None:
        for name in given:
            raise BadInput(f"--{name.replace('_', '-')} belongs to --judge: give that too.")
        return None
    for name in given:
        if name == "probe_steps" and not tokenizers:
            raise BadInput("--probe-steps is for tokenizers, and these are generators: leave it out.")
        if name in generators and tokenizers:
            raise BadInput(f"--{name} is for the samples of generators, and these are tokenizers: leave it out.")
    if args.data is None or (args.tokenizer is None and not tokenizers):
        raise BadInput("--judge needs --data SPEC of real pictures and, for generators, --tokenizer DIR.")
    if args.probe_steps < 1:
        raise BadInput(f"--probe-steps must be at least 1, not {args.probe_steps}.")
    if args.samples < 2:
        raise BadInput(f"--samples must be at least 2, not {args.samples}.")
    from alitok.artifacts.folder import read_card
    from alitok.data.sources import open_source
    from alitok.evaluation.extractors import open_extractor
    from alitok.reports.runs import parse_scales
    from alitok.studies.judges import Judging

    scales = tuple(parse_scales(args.guidance))
    if not tokenizers:
        read_card(Path(args.tokenizer), "tokenizer")
    open_extractor(args.judge, "cpu")
    open_source(args.data, "train")
    return Judging(args.judge, args.data, args.tokenizer, args.samples, scales, probe_steps=args.probe_steps)
