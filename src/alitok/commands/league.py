"""Compare all ideas of the league with their bases, over the same seeds and at a laptop's size, in one table.

The budget is printed first. If you stop the command, the same command resumes it. A finished run is in the table at
once. A row is marked stale if its configuration or source has changed.
"""

import argparse
from pathlib import Path

from alitok.common.errors import BadInput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="SPEC", help="pictures, 32 x 32, e.g. uoft-cs/cifar10")
    parser.add_argument(
        "--league", type=Path, metavar="FILE", help="bases, ideas and budgets (default: experiments/league/league.yaml)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/league"), metavar="DIR", help="(default runs/league)")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="PATH",
        help="write PATH.json, PATH.md and PATH.png (default: `league` in --out)",
    )
    parser.add_argument("--hours", type=float, default=12.0, metavar="H", help="skip runs that would end later (12)")
    parser.add_argument("--only", metavar="NAME,...", help="ideas, with their bases (default: all)")
    parser.add_argument("--renew", action="store_true", help="train stale rows again")
    parser.epilog = "example: alitok league --data uoft-cs/cifar10 --hours 2 --only gram,semantic"


def run(args: argparse.Namespace) -> None:
    from alitok.common.files import experiments_folder
    from alitok.data.sources import open_source
    from alitok.studies.league import League, run_league

    league = League.load(args.league or experiments_folder() / "league" / "league.yaml")
    if not args.hours > 0:
        raise BadInput(f"--hours must be above 0, not {args.hours:g}.")
    only = None if args.only is None else args.only.split(",")
    ideas = [name for family in league.families.values() for name in family.ideas]
    for name in only or []:
        if name not in ideas:
            raise BadInput(f"--only {name}: the league has {', '.join(ideas)}.")
    open_source(args.data, "train")
    results = args.results or args.out / "league"
    for note in run_league(league, args.data, args.out, results, args.hours, args.renew, only):
        print(f"note: {note}")
    print(f"{results}.md, .json and .png")
