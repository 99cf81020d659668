"""Check in one to two minutes whether a new machine has everything, and whether it is right and fast.

Each line is right, slow, missing or wrong, and states what to do. A line is also slow if something is missing that
only some runs need: a weight file or a compiler. With --full every part is measured, stage by stage: seven minutes on
an H100. The exit status is 0; it is 2 if something is missing or wrong.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alitok.common.errors import BadInput

if TYPE_CHECKING:
    import torch

STYLES = {"right": "green", "slow": "yellow", "missing": "yellow", "wrong": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto (default) = a GPU if there is one"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs go (default runs)")
    parser.add_argument(
        "--json",
        nargs="?",
        const=True,
        type=Path,
        metavar="FILE",
        help="where the machine and the lines go as JSON; without FILE they are printed instead of the words",
    )
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


def _look(device: "torch.device", runs: Path, json_file: Path | bool | None) -> bool:
    """Print the findings; return whether something is missing or wrong.

    Args:
        json_file: file that gets them as JSON too; True = print them as JSON only.
    """
    import json

    from rich.console import Console
    from rich.text import Text

    from alitok.common.files import write_json
    from alitok.profiling.bench_machine import Machine
    from alitok.studies.doctor.quick import Finding, look

    console = Console(highlight=False)
    findings: list[Finding] = []
    machines: list[Machine] = []

    def content() -> dict[str, Any]:
        return {
            "machine": machines[0].record() if machines else None,
            "lines": [finding.record() for finding in findings],
        }

    if isinstance(json_file, Path):
        write_json(json_file, content())  # a file that cannot be written is refused before the checks
    for finding in look(device, runs, machines):
        findings.append(finding)
        if json_file is not True:
            line = Text.assemble((f"{finding.state:<9}", STYLES[finding.state]), f"{finding.name}: {finding.found}")
            console.print(line, soft_wrap=True)
            if finding.todo:
                console.print(Text(f"         {finding.todo}", style="dim"), soft_wrap=True)
    if json_file is True:
        print(json.dumps(content(), indent=2))
    else:
        if isinstance(json_file, Path):
            write_json(json_file, content())
        counts = {state: sum(finding.state == state for finding in findings) for state in STYLES}
        console.print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    return any(finding.state in ("missing", "wrong") for finding in findings)
