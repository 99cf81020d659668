"""Train what a configuration describes; repeat the command to go on after an interruption."""

import argparse

from alitok.commands import lightning
from alitok.commands.lightning import OVERRIDES, TAKES_OVERRIDES, launch

__all__ = ["TAKES_OVERRIDES", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    lightning.add_arguments(parser)
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="go on with a run though its model, data or schedule is another now",
    )
    parser.epilog = f"example: alitok fit -c experiments/demo/tokenizer-stage1.yaml --define.run runs/mine\n{OVERRIDES}"


def run(args: argparse.Namespace) -> None:
    launch("fit", args)
