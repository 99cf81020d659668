"""Check the YAML of your own idea against the contract that the rest of the project relies on.

The YAML's first line, `# over: FILE ...`, names the files that it is laid over. Models are made small and weight files
are replaced by random networks, so it takes a minute or two. The idea's classes may be in the current folder.
"""

import argparse
import tempfile
from pathlib import Path

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("idea", metavar="YAML", type=Path, help="the idea's file")
    parser.add_argument("--all-bases", action="store_true", help="over every base that it names, not the first alone")
    parser.epilog = (
        "example: alitok check-idea experiments/ideas/nested-dropout.yaml\nany --key value overrides the files"
    )


def run(args: argparse.Namespace) -> None:
    from alitok.common.errors import BadInput
    from alitok.studies import contract, small
    from alitok.training.launch import quiet

    if not args.idea.is_file():
        raise BadInput(f"There is no file {args.idea}.")
    quiet()
    broken = 0
    for stack in small.stacks(args.idea)[: None if args.all_bases else 1]:
        print(f"{args.idea.name} over {', '.join(str(file) for file in stack[:-1])}", flush=True)
        with tempfile.TemporaryDirectory() as name:
            for finding in contract.all_findings(stack, Path(name), args.overrides):
                print(f"  {'broken' if finding.fault else 'holds '}  {finding.rule}", flush=True)
                if finding.fault:
                    print(f"          {finding.fault}", flush=True)
                    broken += 1
    if broken:
        raise BadInput(f"{args.idea} breaks {broken} rule(s) of the contract.")
