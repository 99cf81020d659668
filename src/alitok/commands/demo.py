"""Run the whole pipeline on built-in data: two tokenizer stages, token cache, generator, samples, report.

It takes minutes on a CPU. After an interruption the same command continues.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="where all of it goes (default runs/demo)")
    parser.add_argument("--config", metavar="DIR", help="folder of the three YAML files (default: the demo's own)")
    parser.add_argument(
        "--images", type=int, default=1500, metavar="N", help="images in the token cache (default 1500)"
    )
    parser.add_argument(
        "--samples", type=int, default=1000, metavar="N", help="samples that are measured (default 1000)"
    )
    parser.add_argument(
        "--classifier-steps",
        type=int,
        default=400,
        metavar="N",
        help="training steps of the measuring network (default 400)",
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "32-true", "bf16-mixed"],
        default="auto",
        help="auto (default): the faster one here",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="time for the whole demo; a few timed steps decide how many it takes (default 12); 0 = the recipe's steps",
    )
    parser.epilog = "example: alitok demo --out runs/demo"


def run(args: argparse.Namespace) -> None:
    from alitok.common.errors import BadInput
    from alitok.common.files import experiments_folder
    from alitok.studies.demo import demo

    if args.samples < 20 or args.images < 20:
        raise BadInput("The demo needs at least 20 --images and 20 --samples.")
    configs = Path(args.config) if args.config else experiments_folder() / "demo"
    if args.minutes is not None and not 0 <= args.minutes < float("inf"):
        raise BadInput(f"--minutes must be 0 (the recipe's own steps) or more, not {args.minutes}.")
    demo(Path(args.out), configs, args.images, args.samples, args.classifier_steps, args.precision, args.minutes)
