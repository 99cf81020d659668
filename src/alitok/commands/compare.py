"""Compare several runs on one page: configurations, curves, the same pictures through each, numbers, cost.

A run is a folder that `alitok fit` made, or a folder of such folders. Runs that differ only in seed_everything form one
group, and the page shows their numbers with the spread over seeds.
"""

import argparse
from pathlib import Path

from alitok.commands.options import add_device_argument
from alitok.common.errors import BadInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folder of a fit, or one that holds several")
    parser.add_argument("--out", required=True, metavar="PAGE", type=Path, help="the page, an .html file")
    parser.add_argument(
        "--data", metavar="SPEC", help="data spec of the pictures to reconstruct (default: the first tokenizer's data)"
    )
    parser.add_argument("--images", type=int, default=8, metavar="N", help="pictures, and classes sampled (default 8)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples (default 0)")
    add_device_argument(parser)
    parser.epilog = "example: alitok compare runs/demo runs/demo-2 --out compare.html"


def run(args: argparse.Namespace) -> None:
    if args.out.suffix != ".html":
        raise BadInput(f"--out {args.out} must be an .html file.")
    if args.images < 1:
        raise BadInput(f"--images must be at least 1, not {args.images}.")
    if len(args.runs) < 2:
        raise BadInput("There is nothing to compare with one run: give two or more.")
    from alitok.common.devices import pick_device
    from alitok.reports.comparison import write_page

    device = pick_device(args.device)
    notes = write_page(args.runs, args.out, data=args.data, images=args.images, seed=args.seed, device=device)
    for note in notes:
        print(f"note: {note}")
    print(f"{args.out}: {len(args.runs)} runs")
