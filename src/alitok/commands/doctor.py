"""Check in about a minute whether a new machine has everything, and whether it is right and fast.

Each line is right, slow, missing or wrong, with advice. With --full every part is measured, stage by stage: seven
minutes on an H100. The exit status is 0, or 2 if something is missing or wrong.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alitok.common.errors import BadInput

if TYPE_CHECKING:
    import torch

STYLES = {"right": "green", "slow": "yellow", "missing": "yellow", "wrong": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto (default) = a GPU if there is one"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs go (default runs)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--full", action="store_true", help="measure every part, into --out")
    parser.add_argument("--out", type=Path, metavar="DIR", help="with --full: folder for numbers, logs and table.md")
    parser.add_argument("--only", action="append", metavar="STAGE", help="with --full: run one stage; may be repeated")
    parser.add_argument("--tiny", action="store_true", help="with --full: small models and few steps, a dry run")
    parser.epilog = "example: alitok doctor --full --out runs/doctor"


def run(args: argparse.Namespace) -> None:
    from alitok.studies.doctor.full import STAGES, full

    if not args.full:
        for name in ("out", "only", "tiny"):
            if getattr(args, name):
                raise BadInput(f"--{name} belongs to --full: give that too.")
    elif args.out is None:
        raise BadInput("--full needs --out DIR for its numbers and logs.")
    elif args.json:
        raise BadInput("--full writes a JSON line for each number into --out: leave out --json.")
    if unknown := sorted(set(args.only or ()) - set(STAGES)):
        raise BadInput(f"--only {unknown[0]}: the stages are {', '.join(STAGES)}.")
    from alitok.common.devices import pick_device

    device = pick_device(args.device)
    if args.full:
        sys.exit(2 if full(args.out, str(device), args.only, args.tiny) else 0)
    if _look(device, args.runs, args.json):
        sys.exit(2)


def _look(device: "torch.device", runs: Path, as_json: bool) -> bool:
    """Print the findings; return whether something is missing or wrong."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.text import Text

    from alitok.studies.doctor.quick import look

    console, findings = Console(highlight=False), []
    for finding in look(device, runs):
        findings.append(finding)
        if not as_json:
            line = Text.assemble((f"{finding.state:<9}", STYLES[finding.state]), f"{finding.name}: {finding.found}")
            console.print(line, soft_wrap=True)
            if finding.advice:
                console.print(Text(f"         {finding.advice}", style="dim"), soft_wrap=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        counts = {state: sum(finding.state == state for finding in findings) for state in STYLES}
        console.print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    return any(finding.state in ("missing", "wrong") for finding in findings)
